# SPDX-License-Identifier: GPL-2.0-or-later
"""The larger part of an image as a squashfs, which the capture kernel mounts instead of unpacking it.

What lies in a ramfs stays in memory. Of a squashfs the packed bytes stay, a third, and the pages of its files are
read when they are needed and can be dropped again. Made by mksquashfs(1) of squashfs-tools, where that is installed.
"""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path

from kdumpd.errors import BuildError, os_reason
from kdumpd.image.cpio import Entry

FOLDER = "usr"
# The modules that mount it, by their names. The kernel needs zstd in squashfs and has it where it has zstd at all.
MODULES = ("loop", "squashfs")
OPTIONS = ("CONFIG_BLK_DEV_LOOP", "CONFIG_SQUASHFS", "CONFIG_SQUASHFS_ZSTD")

# 9 takes half as long again for 1 % less, 15 eleven times as long for 9 %, 5 a fifth less for 2 % more.
LEVEL = 6
# Blocks of 128 KiB: what one page fault unpacks. With 64 KiB it is 4 % more, and takes a quarter less time to make.
_PACKING = (
    *("-comp", "zstd", "-b", "128K", "-noappend", "-no-exports", "-no-progress", "-quiet"),
    # Equal files give equal bytes, whoever packs them and when.
    *("-all-root", "-no-xattrs", "-all-time", "0", "-mkfs-time", "0"),
)
_ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"}
_SECONDS = 600


def is_installed() -> bool:
    """Whether squashfs-tools is there."""
    return all(shutil.which(name, path=_ENVIRONMENT["PATH"]) for name in ("mksquashfs", "unsquashfs"))


def write(entries: Iterable[Entry]) -> bytes:
    """A squashfs of `entries`, which all lie in the folder FOLDER (itself among them). Raises BuildError."""
    try:
        with tempfile.TemporaryDirectory(prefix="kdumpd-squash-") as scratch:
            place_files(entries, Path(scratch))
            packed = Path(scratch) / "packed"
            _run(["mksquashfs", str(Path(scratch) / FOLDER), str(packed), *_PACKING, "-Xcompression-level", str(LEVEL)])
            return packed.read_bytes()
    except OSError as error:
        raise BuildError(
            f"the files of the image cannot be packed below {tempfile.gettempdir()}: {os_reason(error)}",
            hint=f"df -h {tempfile.gettempdir()}",
        ) from error


def read(packed: bytes) -> dict[str, Entry]:
    """The entries of a squashfs by their paths, which begin with FOLDER. Raises BuildError for a damaged one."""
    try:
        with tempfile.TemporaryDirectory(prefix="kdumpd-squash-") as scratch:
            place = Path(scratch) / "packed"
            place.write_bytes(packed)
            folder = Path(scratch) / FOLDER
            _run(["unsquashfs", "-no-progress", "-quiet", "-no-xattrs", "-d", str(folder), str(place)])
            return {entry.path: entry for entry in read_files(Path(scratch), folder)}
    except OSError as error:
        raise BuildError(
            f"the files of the image cannot be unpacked below {tempfile.gettempdir()}: {os_reason(error)}",
            hint=f"df -h {tempfile.gettempdir()}",
        ) from error


def place_files(entries: Iterable[Entry], folder: Path) -> None:
    """Writes entries (folders, files, links; sorted by path here) below `folder`. Raises OSError."""
    for entry in sorted(entries, key=lambda entry: entry.path):
        place = folder / entry.path
        if stat.S_ISDIR(entry.mode):
            place.mkdir(exist_ok=True)
            place.chmod(stat.S_IMODE(entry.mode))
        elif stat.S_ISLNK(entry.mode):
            os.symlink(entry.content, os.fsencode(place))
        elif entry.is_file:
            handle = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with open(handle, "wb") as stream:
                stream.write(entry.content)
                os.fchmod(handle, stat.S_IMODE(entry.mode))


def read_files(root: Path, folder: Path) -> Iterable[Entry]:
    """`folder`, a folder below `root`, and all it holds as entries with paths from `root` on. Raises OSError."""
    pending = [folder]
    while pending:
        place = pending.pop()
        mode = place.lstat().st_mode
        path = str(place.relative_to(root))
        if stat.S_ISDIR(mode):
            pending.extend(place.iterdir())
            yield Entry(path=path, mode=mode)
        elif stat.S_ISLNK(mode):
            yield Entry(path=path, mode=stat.S_IFLNK | 0o777, content=os.readlink(os.fsencode(place)))
        else:
            yield Entry(path=path, mode=mode, content=place.read_bytes() if stat.S_ISREG(mode) else b"")


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", check=False,
            env=_ENVIRONMENT, timeout=_SECONDS, umask=0o077,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise BuildError(f"{command[0]} was not done within {_SECONDS} s", hint="try again") from error
    if done.returncode != 0:
        said = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        raise BuildError(
            f"{command[0]} failed with status {done.returncode}: {said[-1] if said else 'it said nothing'}",
            hint="df -h /tmp, or install squashfs-tools again",
        )
