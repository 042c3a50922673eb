# SPDX-License-Identifier: GPL-2.0-or-later
"""Another program makes the dump: the real makedumpfile, programs that copy, fail, hang and break off."""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import time
from pathlib import Path

import pytest
from fake_kernel import OLD, PAGES, FakeKernel

from kdumpd.collector import capture as capturing
from kdumpd.collector.dump import Outcome
from kdumpd.collector.external import command, known_format, run_external
from kdumpd.collector.progress import Progress
from kdumpd.collector.source import Source
from kdumpd.config.capture import CaptureConfig, LocalDestination
from kdumpd.config.model import Action
from kdumpd.config.parse import parse_config
from kdumpd.dumpfile.manifest import Manifest, Result
from kdumpd.dumpfile.reader import verify
from kdumpd.dumpfile.stored import open_stored
from kdumpd.errors import TargetError
from kdumpd.targets.files import CrashDirectory


@pytest.fixture
def core(tmp_path: Path) -> Path:
    kernel = FakeKernel(OLD)
    kernel.pages[PAGES // 2 :, 0] = 1 << 4
    kernel.memory[0x300000:0x340000] = os.urandom(0x40000)
    return kernel.write(tmp_path / "core")


def program(folder: Path, text: str, name: str = "collector") -> str:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def save(folder: Path, core: Path, *words: str, limit_sec: float | None = None) -> Manifest:
    """Runs the part between mount and unmount; the manifest as it lies on the disk."""
    settings = CaptureConfig(
        hostname="host",
        kernel="6.1.0-fake",
        destinations=(LocalDestination(device="UUID=0", fstype="ext4", directory="/crash"),),
        dump=parse_config([("kdump.conf", f"core_collector external {' '.join(words)}")]).dump,
        final_action=Action.REBOOT,
        failure_action=Action.REBOOT,
    )
    assert settings.dump.external == words
    assert CaptureConfig.from_json(settings.to_json(), "capture.json") == settings
    with CrashDirectory.create(folder, "crash", "host-1") as directory, Source.open(core) as source:
        progress = Progress(5, stream=io.StringIO())
        run = capturing._Run(settings, progress, "image", 1, source, None, ["one", "two"], vmcore=core)
        run._until = None if limit_sec is None else time.monotonic() + limit_sec
        run._save(directory)
    return Manifest.from_json((directory.path / "manifest.json").read_text(), "manifest")


def names(folder: Path) -> set[str]:
    return {path.name for path in (folder / "crash/host-1").iterdir()}


OURS = f"cd {Path(__file__).resolve().parents[3]} && /usr/bin/python3 -m kdumpd.collector"


def test_what_makedumpfile_flattens_becomes_a_plain_dump(core: Path, tmp_path: Path) -> None:
    """kdumpd-collect in its place: makedumpfile itself wants a kernel that ran (tests/dump)."""
    words = [program(tmp_path, f'{OURS} "$@"', "makedumpfile"), "-z", "-d", "31", "-f"]
    manifest = save(tmp_path, core, *words)
    assert (manifest.result, manifest.reason) == (Result.COMPLETE, None)
    assert (manifest.level, manifest.compression) == (31, "zstd")
    assert any(note == f"the dump is by another program: {words[0]} -F -z -d 31 {core}" for note in manifest.notes)
    assert names(tmp_path) == {"vmcore", "vmcore-dmesg.txt", "manifest.json"}
    dump = tmp_path / "crash/host-1/vmcore"
    assert dump.stat().st_mode & 0o777 == 0o600
    assert manifest.dump is not None
    (region,) = manifest.dump.regions
    assert manifest.dump.size_bytes == region.size_bytes == dump.stat().st_size
    with contextlib.closing(open_stored(dump)) as stored:
        assert known_format(stored)
    verify(dump)


def test_a_program_that_copies(core: Path, tmp_path: Path) -> None:
    manifest = save(tmp_path, core, "cp")
    assert manifest.result is Result.COMPLETE
    assert (tmp_path / "crash/host-1/vmcore").read_bytes() == core.read_bytes()
    assert manifest.pages["verified"] > 0


def test_what_cannot_be_checked_is_kept_and_said(core: Path, tmp_path: Path) -> None:
    manifest = save(tmp_path, core, program(tmp_path, 'gzip -c <"$1"'))
    assert manifest.result is Result.COMPLETE
    assert "what it wrote is no dump that kdumpd can check" in manifest.notes
    assert (tmp_path / "crash/host-1/vmcore").read_bytes()[:2] == b"\x1f\x8b"


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("collector", "exit 3", "ended with status 3"),
        ("collector", 'cat "$1"; exit 1', "ended with status 1"),
        ("collector", "exit 0", "ended before its dump was whole"),
        ("collector", 'head -c 100000 "$1"; kill -9 $$', "was killed by signal 9"),
        ("makedumpfile", "echo no kernel >&2; exit 1", "ended with status 1"),
        ("makedumpfile", "echo something else", "gave no dump"),
        ("makedumpfile", f'{OURS} "$@" | head -c 20000', "ended before its dump was whole"),
        ("makedumpfile", f'{OURS} "$@"; exit 1', "ended with status 1"),
    ],
)
def test_a_program_that_fails_leaves_nothing_with_a_final_name(
    core: Path, tmp_path: Path, name: str, text: str, reason: str
) -> None:
    manifest = save(tmp_path, core, program(tmp_path, text, name))
    assert manifest.result is not Result.COMPLETE
    assert reason in (manifest.reason or "")
    assert "vmcore" not in names(tmp_path)
    assert "vmcore-dmesg.txt" in names(tmp_path)


def test_a_program_that_is_not_there(core: Path, tmp_path: Path) -> None:
    manifest = save(tmp_path, core, "/no/such/program")
    assert manifest.result is Result.LOG_ONLY
    assert "/no/such/program cannot be run: No such file or directory" in (manifest.reason or "")


@pytest.mark.parametrize("text", ["while :; do :; done", "while :; do echo x; sleep 0.2; done"])
def test_a_program_that_takes_too_long_is_ended(core: Path, tmp_path: Path, text: str) -> None:
    path = program(tmp_path, f"echo $$ >{tmp_path}/pid; {text}")
    began = time.monotonic()
    manifest = save(tmp_path, core, path, limit_sec=2)
    assert time.monotonic() - began < 10
    assert "the time for this target is over" in (manifest.reason or "")
    assert manifest.result is not Result.COMPLETE
    assert not Path(f"/proc/{(tmp_path / 'pid').read_text().strip()}").exists()


def test_work_is_a_sign_of_life_and_waiting_is_none(tmp_path: Path, core: Path) -> None:
    """`alive` is touched again and again, or at the ends alone."""
    counts = {}
    for name, text in (("works", "timeout 4 sh -c 'while :; do :; done'"), ("waits", "exec sleep 6")):
        progress = Progress(1, stream=io.StringIO(), heartbeat=tmp_path / name)
        times = [time.monotonic()]
        progress.alive = lambda times=times: times.append(time.monotonic())  # type: ignore[method-assign, misc]
        with (
            pytest.raises(TargetError),
            CrashDirectory.create(tmp_path, "crash", name) as directory,
            directory.create_file("dump") as file,
        ):
            run_external([program(tmp_path, text)], core, file, Outcome(), progress)
        counts[name] = max(later - sooner for sooner, later in itertools.pairwise(times))
    # Starting it is work, too: the silence begins a second or two later.
    assert counts["works"] + 1 < counts["waits"]


def test_words() -> None:
    vmcore = Path("/proc/vmcore")
    assert command(["/usr/sbin/makedumpfile", "-F", "-l"], vmcore) == [
        "/usr/sbin/makedumpfile",
        "-F",
        "-l",
        "/proc/vmcore",
    ]
    assert command(["dd", "bs=1M"], vmcore) == ["dd", "bs=1M", "/proc/vmcore", "/proc/self/fd/1"]
    for text in ("external", "external -d", "external /a/../b", "external $(x)"):
        (problem,) = parse_config([("kdump.conf", f"core_collector {text}")]).problems
        assert problem.fatal
