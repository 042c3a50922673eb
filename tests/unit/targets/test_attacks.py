# SPDX-License-Identifier: GPL-2.0-or-later
"""Somebody works against the crash directory while it is made and written: nothing may land outside of it."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kdumpd.errors import TargetError
from kdumpd.targets import beneath
from kdumpd.targets.files import CrashDirectory

NOBODY = 65534
ROUNDS = 300


@pytest.fixture(params=["openat2", "walk"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the kernel's own check, and as on a kernel without it."""
    if request.param == "walk":

        def unknown(*_: object) -> int:
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

        monkeypatch.setattr(beneath, "_openat2", unknown)


def test_this_kernel_knows_openat2(tmp_path: Path) -> None:
    """Or the tests with it would show nothing."""
    (tmp_path / "link").symlink_to("/")
    folder = os.open(tmp_path, os.O_RDONLY)
    try:
        os.close(beneath._openat2(folder, "."))
        for path, code in (("link", errno.ELOOP), ("..", errno.EXDEV), ("gone", errno.ENOENT)):
            with pytest.raises(OSError, match=os.strerror(code)):
                beneath._openat2(folder, path)
    finally:
        os.close(folder)


@contextlib.contextmanager
def in_a_thread(attack: Callable[[], None]) -> Iterator[None]:
    """Repeats `attack` until the end of the block; what it cannot do for a moment is tried again."""
    over = threading.Event()

    def run() -> None:
        while not over.is_set():
            with contextlib.suppress(OSError):
                attack()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@contextlib.contextmanager
def as_nobody(attack: Callable[[], None]) -> Iterator[None]:
    """The same by a process of another user."""
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            while True:
                with contextlib.suppress(OSError):
                    attack()
        finally:
            os._exit(1)
    try:
        yield
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("part", ["var", "var/crash"])
def test_a_parent_that_turns_into_a_link(part: str, tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    (root / "var/crash").mkdir(parents=True)
    (outside / "crash").mkdir(parents=True)
    swapped = root / part
    aside = swapped.with_name("aside")

    def attack() -> None:
        swapped.rename(aside)
        swapped.symlink_to(outside)
        swapped.unlink()
        aside.rename(swapped)

    made = refused = 0
    with in_a_thread(attack):
        for number in range(ROUNDS):
            try:
                with CrashDirectory.create(root, "var/crash", f"host-{number}") as directory:
                    directory.create_file("f").close()
                    made += 1
            except TargetError:
                refused += 1
    assert made + refused == ROUNDS
    assert made > 0
    assert sorted(str(path.relative_to(outside)) for path in outside.rglob("*")) == ["crash"]


@pytest.mark.usefixtures("way")
def test_a_folder_that_all_may_write_to(tmp_path: Path) -> None:
    """Another user puts folders, open to all, in the place of those that were made."""
    for parent in (tmp_path, *tmp_path.parents):
        if parent != Path("/") and parent.stat().st_uid == 0 and not parent.stat().st_mode & stat.S_IXOTH:
            parent.chmod(parent.stat().st_mode | stat.S_IXOTH)
    crashes = tmp_path / "crash"
    crashes.mkdir()
    crashes.chmod(0o777)

    def attack() -> None:
        for path in crashes.iterdir():
            if path.name.startswith("host-") and path.stat().st_uid == 0:
                path.rename(crashes / f"taken-{path.name}")
                path.mkdir()
                path.chmod(0o777)

    saved = refused = 0
    patience = time.monotonic() + 30
    rounds = 0
    with as_nobody(attack):
        while rounds < ROUNDS or (not refused and time.monotonic() < patience):
            rounds += 1
            try:
                with CrashDirectory.create(tmp_path, "crash", f"host-{rounds}") as directory:
                    with directory.create_file("secret.tmp") as file:
                        file.write_at(0, b"secret")
                    directory.rename("secret.tmp", "secret")
                    saved += 1
            except TargetError:
                refused += 1
    assert saved + refused == rounds
    assert refused > 0, "the attacker was never in time: the test shows nothing"
    for path in crashes.glob("*/secret*"):
        assert path.parent.stat().st_uid == 0
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        assert path.stat().st_nlink == 1
    for path in crashes.glob("*"):
        if path.stat().st_uid == NOBODY:
            assert list(path.iterdir()) == []


@pytest.mark.parametrize("kind", ["file", "fifo", "link", "hardlink"])
def test_names_that_are_taken_already(kind: str, tmp_path: Path) -> None:
    """A file of a crash is never opened when it is there: neither written through nor waited for."""
    outside = tmp_path / "outside"
    outside.write_text("shadow")
    with CrashDirectory.create(tmp_path, "crash", "host") as directory:
        taken = directory.path / "vmcore"
        if kind == "file":
            taken.touch()
        elif kind == "fifo":
            os.mkfifo(taken)
        elif kind == "link":
            taken.symlink_to(outside)
        else:
            taken.hardlink_to(outside)
        with pytest.raises(TargetError, match="File exists"):
            directory.create_file("vmcore")
    assert outside.read_text() == "shadow"


def test_a_folder_that_is_moved_away_is_no_success(tmp_path: Path) -> None:
    with CrashDirectory.create(tmp_path, "crash", "host") as directory:
        directory.create_file("a.tmp").close()
        directory.path.rename(tmp_path / "crash/elsewhere")
        directory.path.mkdir()
        with pytest.raises(TargetError, match="no longer the folder"):
            directory.rename("a.tmp", "a")
        directory.path.rmdir()
        with pytest.raises(TargetError, match="cannot be seen any more"):
            directory.rename("a", "b")


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("directory", ["..", "a/../../b", "/../x"])
def test_a_path_that_leads_out(directory: str, tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    with pytest.raises(TargetError, match="leads out"):
        CrashDirectory.create(root, directory, "host")
    assert [path.name for path in tmp_path.iterdir()] == ["root"]
