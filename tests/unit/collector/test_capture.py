# SPDX-License-Identifier: GPL-2.0-or-later
"""The order of work in the capture kernel, on a small dead kernel and a directory, with faults in between."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import io
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from fake_kernel import OLD, PAGES, FakeKernel
from plain_capture import settings

from kdumpd.collector import capture as capturing
from kdumpd.collector.capture import Places, capture, image_id
from kdumpd.collector.progress import Progress, peak_rss
from kdumpd.collector.source import Source
from kdumpd.config.capture import LocalDestination
from kdumpd.dumpfile.manifest import Manifest, Result
from kdumpd.dumpfile.reader import DiskdumpReader, verify
from kdumpd.errors import KdumpError, NoSpaceError, VmcoreError
from kdumpd.targets import files
from kdumpd.targets.files import CrashDirectory
from kdumpd.targets.target import Target

SETTINGS = settings(kernel="6.1.0-fake")


@pytest.fixture
def core(tmp_path: Path) -> Path:
    """Half of its pages are cache; some hold data, the others are zero."""
    kernel = FakeKernel(OLD)
    kernel.pages[PAGES // 2 :, 0] = 1 << 4
    kernel.memory[0x300000:0x340000] = os.urandom(0x40000)
    return kernel.write(tmp_path / "core")


def save(
    folder: Path, core: Path | None, *, lines: list[str] | None = None, trouble: KdumpError | None = None
) -> Manifest:
    """Runs the part between mount and unmount; the manifest as it lies on the disk."""
    progress = Progress(5, stream=io.StringIO())
    with (
        CrashDirectory.create(folder, "crash", "host-1") as directory,
        Source.open(core) if core is not None else contextlib.nullcontext() as source,
    ):
        lines = ["one", "Kernel panic - not syncing: x", "two"] if lines is None else lines
        run = capturing._Run(SETTINGS, progress, "image", 1, source, trouble, lines)
        returned = run._save(directory)
    found = Manifest.from_json((directory.path / "manifest.json").read_text(), "manifest")
    assert found == returned
    assert not (directory.path / "manifest.json.tmp").exists()
    return found


def names(folder: Path) -> set[str]:
    return {path.name for path in (folder / "crash/host-1").iterdir()}


def test_a_whole_capture(core: Path, tmp_path: Path) -> None:
    manifest = save(tmp_path, core)
    assert names(tmp_path) == {"vmcore", "vmcore-dmesg.txt", "manifest.json"}
    dump = tmp_path / "crash/host-1/vmcore"
    verify(dump)
    assert manifest.result is Result.COMPLETE
    assert (manifest.reason, manifest.image_id, manifest.panic) == (None, "image", "Kernel panic - not syncing: x")
    assert manifest.dump is not None
    assert manifest.log is not None
    assert manifest.dump.size_bytes == dump.stat().st_size
    assert sum(region.size_bytes for region in manifest.dump.regions) == manifest.dump.size_bytes
    assert manifest.pages["total"] == PAGES
    assert manifest.pages["kept"] == manifest.pages["written"] == PAGES // 2
    assert manifest.pages["cache"] == PAGES // 2
    assert manifest.pages["zero"] > 0
    assert manifest.crash_time_usec == 1_700_000_000_000_000
    with DiskdumpReader(dump) as reader, core.open("rb") as raw:
        raw.seek(-(PAGES - 0x300) * 4096, os.SEEK_END)
        assert reader.page(0x300) == raw.read(4096)


@pytest.mark.parametrize("after", [0, 1, 2, 3, 5, 8, 13, 20])
def test_a_full_disk_after_any_write(after: int, core: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the reserved room for the manifest is left: its text says what happened, and no name lies."""
    real = os.pwrite
    count = 0

    def pwrite(fd: int, data: bytes, at: int) -> int:
        nonlocal count
        name = os.readlink(f"/proc/self/fd/{fd}")
        if not name.endswith("manifest.json.tmp"):
            count += 1
            if count > after:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(fd, data, at)

    monkeypatch.setattr(files.os, "pwrite", pwrite)
    manifest = save(tmp_path, core)
    if manifest.result is Result.COMPLETE:
        assert count <= after
        return
    assert manifest.reason is not None
    assert "No space left on device" in (manifest.reason + " ".join(manifest.notes))
    assert "vmcore" not in names(tmp_path)


def test_without_room_for_headers_the_log_is_what_is_left(
    core: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = files.OutputFile.reserve

    def reserve(self: files.OutputFile, size: int) -> None:
        if self.name == "vmcore.incomplete":
            raise NoSpaceError("no room for the headers")
        real(self, size)

    monkeypatch.setattr(files.OutputFile, "reserve", reserve)
    manifest = save(tmp_path, core)
    assert manifest.result is Result.LOG_ONLY
    assert [step.step for step in manifest.steps] == ["log-only"]
    assert names(tmp_path) == {"vmcore-dmesg.txt", "manifest.json"}


def test_the_manifest_tells_how_the_work_went(core: Path, tmp_path: Path) -> None:
    manifest = save(tmp_path, core)
    assert manifest.level == 31
    assert manifest.steps == ()
    assert {"choose", "critical", "slab", "rest", "finish", "verify"} <= set(manifest.timings_sec)
    assert all(seconds >= 0 for seconds in manifest.timings_sec.values())
    assert manifest.pages["verified"] >= 64
    assert (manifest.lowest_available_bytes or 0) > 1 << 20
    assert manifest.compression_level is not None


def test_fsync_that_fails_is_no_success(core: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.fsync

    def fsync(fd: int) -> None:
        if os.readlink(f"/proc/self/fd/{fd}").endswith("vmcore.incomplete"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(fd)

    monkeypatch.setattr(files.os, "fsync", fsync)
    manifest = save(tmp_path, core)
    assert manifest.result is Result.INCOMPLETE
    assert "did not reach stable storage: Input/output error" in (manifest.reason or "")
    assert names(tmp_path) == {"vmcore.incomplete", "vmcore-dmesg.txt", "manifest.json"}


def test_a_fault_of_ours_keeps_the_log_and_says_so(core: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError("odd")

    monkeypatch.setattr(capturing, "write_dump", fail)
    manifest = save(tmp_path, core)
    assert manifest.result is Result.LOG_ONLY
    assert manifest.reason == "internal fault: ZeroDivisionError('odd')"
    assert "vmcore" not in names(tmp_path)


def test_want_of_memory_is_told(core: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(capturing, "write_dump", fail)
    assert "out of memory in the capture kernel" in (save(tmp_path, core).reason or "")


def test_a_dump_that_does_not_verify_gets_no_final_name(
    core: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = files.OutputFile.close

    def close(self: files.OutputFile) -> None:
        if self.name == "vmcore.incomplete" and self._fd >= 0:
            self.truncate(100_000)
        real(self)

    monkeypatch.setattr(files.OutputFile, "close", close)
    manifest = save(tmp_path, core)
    assert manifest.result is Result.INCOMPLETE
    assert "vmcore" not in names(tmp_path)


def test_without_a_core_the_manifest_still_tells(tmp_path: Path) -> None:
    manifest = save(tmp_path, None, lines=[], trouble=VmcoreError("/proc/vmcore is not an ELF file"))
    assert (manifest.result, manifest.reason) == (Result.FAILED, "/proc/vmcore is not an ELF file")
    assert names(tmp_path) == {"manifest.json"}


@pytest.mark.parametrize("key", ["SIZE(page)", "SYMBOL(mem_section)", "SYMBOL(init_top_pgt)", "OFFSET(page.flags)"])
def test_what_cannot_be_understood_is_saved_whole(key: str, tmp_path: Path) -> None:
    kernel = FakeKernel(OLD)
    kernel.pages[:, 0] = 1 << 4
    kernel.missing = {key}
    manifest = save(tmp_path, kernel.write(tmp_path / "core"))
    assert manifest.result is Result.COMPLETE
    assert manifest.pages["kept"] == manifest.pages["total"] == PAGES
    assert any("nothing is left out" in note for note in manifest.notes)


def test_pages_that_cannot_be_read_are_named(core: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from kdumpd.vmcore.elfcore import ElfCore

    real = ElfCore.read_pages

    def read_pages(self: ElfCore, pfns: np.ndarray, out: np.ndarray) -> np.ndarray:
        bad = real(self, pfns, out)
        here = np.flatnonzero(pfns == 0x301)
        out[here] = 0
        return np.concatenate((bad, here))

    monkeypatch.setattr(ElfCore, "read_pages", read_pages)
    manifest = save(tmp_path, core)
    assert manifest.result is Result.COMPLETE
    assert manifest.pages["unreadable"] == 1
    assert any("pfn 0x301" in note for note in manifest.notes)


MISSING = tuple(
    LocalDestination(device=f"/dev/no-such-{name}", fstype="ext4", directory="/crash") for name in ("device", "other")
)


def places(tmp_path: Path, core: Path) -> Places:
    settings = tmp_path / "capture.json"
    settings.write_text(dataclasses.replace(SETTINGS, destinations=MISSING).to_json())
    return Places(
        settings=settings, image=tmp_path / "image.json", vmcore=core, mountpoint=tmp_path / "mnt",
        heartbeat=tmp_path / "alive", answers=tmp_path, kmsg=None, device_deadline_sec=0.3,
    )  # fmt: skip


def test_a_missing_device_is_one_sentence(core: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert capture(places(tmp_path, core)) == 1
    out = capsys.readouterr().out
    for destination in MISSING:
        assert f"CAPTURE FAILED on {destination}: the device {destination.device} did not appear within 0 s" in out
    assert "Traceback" not in out
    assert (tmp_path / "alive").exists()


def test_the_next_target_is_tried_when_one_fails(
    core: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    full, good = tmp_path / "full", tmp_path / "good"
    full.mkdir()
    good.mkdir()
    (full / "crash").write_text("in the way")
    folders = iter([full, good])

    class Folder(Target):
        name = "a folder"

        @contextlib.contextmanager
        def open_crash(self, name: str, alive: Callable[[], None]) -> Iterator[CrashDirectory]:
            with CrashDirectory.create(next(folders), "crash", name) as directory:
                yield directory

    monkeypatch.setattr(capturing, "make_target", lambda *_, **__: Folder())
    assert capture(places(tmp_path, core)) == 0
    (name,) = (path.name for path in (good / "crash").iterdir())
    manifest = Manifest.from_json((good / "crash" / name / "manifest.json").read_text(), "manifest")
    assert manifest.result is Result.COMPLETE
    assert any(note.startswith(f"before this target {MISSING[0]} was tried:") for note in manifest.notes)
    assert "SAVED" in capsys.readouterr().out


def test_missing_settings_are_one_sentence(core: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = places(tmp_path, core)
    where.settings.unlink()
    assert capture(where) == 1
    assert "capture.json: No such file or directory" in capsys.readouterr().out
    where.settings.write_text("{}")
    assert capture(where) == 1
    assert "not a capture configuration" in capsys.readouterr().out


def test_image_id_and_peak(tmp_path: Path) -> None:
    path = tmp_path / "image.json"
    assert image_id(path) is None
    for text, expected in [("{", None), ("[]", None), ('{"image_id": 3}', None), ('{"image_id": "ab"}', "ab")]:
        path.write_text(text)
        assert image_id(path) == expected
    peak = peak_rss()
    assert peak is not None
    assert peak > 5 << 20
    assert json.dumps(peak)


def test_what_is_mounted_is_told_as_the_kernel_shows_it(tmp_path: Path) -> None:
    mounts = tmp_path / "mounts"
    where = Path("/run/kdumpd/target")
    lines = ("tmpfs /run tmpfs rw", f"/dev/vda {where} ext4 rw,noatime", f"10.0.0.1:/x {where} nfs4 rw,vers=4.2")
    mounts.write_text("".join(f"{line} 0 0\n" for line in lines))
    assert capturing.mounted_as(where, mounts) == "10.0.0.1:/x nfs4 rw,vers=4.2"  # the one on top
    assert capturing.mounted_as(Path("/mnt"), mounts) == ""
    assert capturing.mounted_as(where, tmp_path / "none") == ""
