# SPDX-License-Identifier: GPL-2.0-or-later
"""What a rehearsal left: only the whole dump of that very crash, by that very image, is a success."""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from fake_kernel import OLD, FakeKernel
from plain_capture import settings

from kdumpd.collector import capture as capturing
from kdumpd.collector.progress import Progress
from kdumpd.collector.source import Source
from kdumpd.rehearsal.found import check, unpack
from kdumpd.rehearsal.machine import StageError
from kdumpd.targets.files import CrashDirectory

MARKER = "0123456789abcdef"
SETTINGS = settings(kernel="6.1.0-fake")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A crash as the collector leaves it, in the folder for crashes."""
    core = FakeKernel(OLD).write(tmp_path / "core")
    with CrashDirectory.create(tmp_path, "crash", "host-1") as directory, Source.open(core) as source:
        lines = [f"kdumpd: rehearsal {MARKER}", "Kernel panic - not syncing: x"]
        progress = Progress(5, stream=io.StringIO())
        capturing._Run(SETTINGS, progress, "image", 1, source, None, lines)._save(directory)
    return tmp_path / "crash"


def test_a_whole_dump_of_that_crash(folder: Path) -> None:
    crash = check(folder, "image", MARKER)
    assert crash.dump is not None
    assert crash.dump_bytes == crash.dump.stat().st_size


def _change_manifest(folder: Path, **values: object) -> None:
    path = folder / "host-1/manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def _damage(folder: Path) -> None:
    with (folder / "host-1/vmcore").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last[0] ^ 1]))


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda folder: (folder / "host-1").rename(folder.parent / "away"), "holds 0 crashes instead of one"),
        (lambda folder: (folder / "host-1/manifest.json").unlink(), "no manifest|before it wrote its manifest"),
        (lambda folder: (folder / "host-1/vmcore").unlink(), "there is no file vmcore"),
        (lambda folder: _change_manifest(folder, result="incomplete", reason="disk full"), "incomplete: disk full"),
        (lambda folder: _change_manifest(folder, result="log-only", reason="no core"), "log-only: no core"),
        (lambda folder: _change_manifest(folder, image_id="other"), "made by another image, other"),
        (_damage, "the dump is not what was written"),
        (lambda folder: (folder / "host-1/vmcore-dmesg.txt").write_text("x"), "vmcore-dmesg.txt has 1 bytes"),
    ],
)
def test_anything_less_is_no_success(spoil: Callable[[Path], None], sentence: str, folder: Path) -> None:
    if sentence.startswith("no manifest"):
        (folder / "host-1/vmcore").rename(folder / "host-1/vmcore.incomplete")
    spoil(folder)
    with pytest.raises(StageError, match=sentence):
        check(folder, "image", MARKER)


def test_the_dump_of_another_crash_is_no_success(folder: Path) -> None:
    with pytest.raises(StageError, match="not that of the scratch machine"):
        check(folder, "image", "fedcba9876543210")


def test_a_dump_whose_sums_agree_but_that_nobody_can_read(folder: Path) -> None:
    """As from a collector that writes nonsense and sums it up well."""
    dump = folder / "host-1/vmcore"
    dump.write_bytes(b"KDUMP   " + bytes(8192))
    _change_manifest(folder, dump={"name": "vmcore", "size_bytes": dump.stat().st_size, "sha256": None, "regions": []})
    with pytest.raises(StageError, match="the dump cannot be read: "):
        check(folder, "image", MARKER)


def _archive(path: Path, *members: tuple[str, bytes, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, kind, content in members:
            member = tarfile.TarInfo(name)
            member.type, member.size, member.linkname = kind, len(content), "/etc/passwd"
            tar.addfile(member, io.BytesIO(content))
    with path.open("ab") as file:
        file.truncate(path.stat().st_size + (1 << 20))  # the disk goes on
    return path


def test_only_files_in_folders_are_taken_out(tmp_path: Path) -> None:
    regular, link = tarfile.REGTYPE, tarfile.SYMTYPE
    archive = _archive(
        tmp_path / "archive",
        ("./host-1/vmcore", regular, b"data"),
        ("./host-1/link", link, b""),
        ("./../evil", regular, b"x"),
        ("/etc/evil", regular, b"x"),
        ("top", regular, b"x"),
        ("a/b/c", regular, b"x"),
    )
    unpack(archive, tmp_path / "found")
    found = {str(path.relative_to(tmp_path / "found")) for path in (tmp_path / "found").rglob("*")}
    assert found == {"host-1", "host-1/vmcore"}
    assert (tmp_path / "found/host-1/vmcore").stat().st_mode & 0o777 == 0o600


def test_a_disk_without_an_archive_is_no_success(tmp_path: Path) -> None:
    (tmp_path / "archive").write_bytes(bytes(4096))
    unpack(tmp_path / "archive", tmp_path / "found")
    with pytest.raises(StageError, match="holds 0 crashes"):
        check(tmp_path / "found", "image", MARKER)
    (tmp_path / "cut").write_bytes(
        _archive(tmp_path / "whole", ("a/b", tarfile.REGTYPE, bytes(9000))).read_bytes()[:4000]
    )
    with pytest.raises(StageError, match="cannot be read"):
        unpack(tmp_path / "cut", tmp_path / "second")
