# SPDX-License-Identifier: GPL-2.0-or-later
"""Crash directories: private, never through a link, never over something that is there."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from kdumpd.errors import NoSpaceError, TargetError
from kdumpd.targets import files
from kdumpd.targets.files import CrashDirectory


@pytest.fixture(autouse=True)
def open_umask() -> Iterator[None]:
    old = os.umask(0)
    yield
    os.umask(old)


def test_modes_are_private_whatever_the_umask(tmp_path: Path) -> None:
    with CrashDirectory.create(tmp_path, "/var/crash", "host-1") as directory, directory.create_file("f") as file:
        file.write_at(3, b"abc")
        file.sync()
        file.truncate(5)
        assert file.read_at(0, 10) == b"\0\0\0ab"
    assert directory.path == tmp_path / "var/crash/host-1"
    for path in (directory.path, directory.path.parent, directory.path.parent.parent):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
    assert stat.S_IMODE((directory.path / "f").stat().st_mode) == 0o600


def test_crashes_of_one_second_do_not_mix(tmp_path: Path) -> None:
    names = []
    for _ in range(3):
        with CrashDirectory.create(tmp_path, "crash", "host-1") as directory:
            names.append(directory.path.name)
    assert names == ["host-1", "host-1-2", "host-1-3"]


def test_rename_gives_the_final_name(tmp_path: Path) -> None:
    with CrashDirectory.create(tmp_path, "", "host") as directory:
        directory.create_file("a.tmp").close()
        directory.rename("a.tmp", "a")
        assert [path.name for path in directory.path.iterdir()] == ["a"]
        with pytest.raises(TargetError, match=r"cannot be renamed to b: No such file"):
            directory.rename("a.tmp", "b")


@pytest.mark.parametrize("kind", ["link", "dangling", "file", "fifo"])
@pytest.mark.parametrize("where", ["var", "var/crash"])
def test_what_is_in_the_way_is_refused(kind: str, where: str, tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    (root / where).parent.mkdir(parents=True)
    outside.mkdir()
    if kind == "link":
        (root / where).symlink_to(outside)
    elif kind == "dangling":
        (root / where).symlink_to("/nowhere")
    elif kind == "file":
        (root / where).write_text("x")
    else:
        os.mkfifo(root / where)
    with pytest.raises(TargetError, match=where):
        CrashDirectory.create(root, "/var/crash", "host")
    assert list(outside.iterdir()) == []


def test_a_link_with_the_name_of_the_crash_is_not_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (tmp_path / "crash").mkdir()
    (tmp_path / "crash/host").symlink_to(outside)
    with CrashDirectory.create(tmp_path, "crash", "host") as directory:
        assert directory.path.name == "host-2"
        (directory.path / "f").symlink_to(outside / "f")
        with pytest.raises(TargetError, match="File exists"):
            directory.create_file("f")
    assert list(outside.iterdir()) == []


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS])
def test_errors_of_the_kernel_are_heeded(code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    expected = NoSpaceError if code in (errno.ENOSPC, errno.EDQUOT) else TargetError
    with CrashDirectory.create(tmp_path, "", "host") as directory, directory.create_file("f") as file:
        monkeypatch.setattr(files.os, "pwrite", fail)
        monkeypatch.setattr(files.os, "fsync", fail)
        monkeypatch.setattr(files.os, "posix_fallocate", fail)
        for step in (lambda: file.write_at(0, b"x"), file.sync, directory.sync, lambda: file.reserve(1)):
            with pytest.raises(TargetError, match=os.strerror(code)) as caught:
                step()
            assert type(caught.value) is expected
        monkeypatch.undo()


def test_short_writes_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.pwrite
    with CrashDirectory.create(tmp_path, "", "host") as directory, directory.create_file("f") as file:
        monkeypatch.setattr(files.os, "pwrite", lambda fd, data, at: real(fd, data[:3], at))
        file.write_at(2, b"abcdefgh")
        assert file.read_at(0, 100) == b"\0\0abcdefgh"
