# SPDX-License-Identifier: GPL-2.0-or-later
"""A crash directory on a mounted filesystem: private from the first byte, durable when it says so.

Every step reports the kernel's error; an fsync that fails is a failed dump. A file gets its final name only by a
rename after its bytes are on stable storage.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from kdumpd.dumpfile.stored import Stored, open_stored
from kdumpd.errors import NoSpaceError, TargetError, os_reason
from kdumpd.targets.beneath import open_folder

DIRECTORY_MODE = 0o700
FILE_MODE = 0o600
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_MAX_SAME_NAME = 1000
_MOST_PARTS = 1024  # IOV_MAX of Linux


def _error(error: OSError, what: str) -> TargetError:
    kind = NoSpaceError if error.errno in NO_SPACE else TargetError
    return kind(f"{what}: {os_reason(error)}")


class OutputFile:
    """A file that is written at any offset (dumpfile.sink.Sink)."""

    rewritable = True

    def __init__(self, fd: int, name: str) -> None:
        self._fd = fd
        self.name = name

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def write_at(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """All of `data` at `offset`. Raises NoSpaceError or TargetError."""
        view = memoryview(data)
        while view:
            try:
                written = os.pwrite(self._fd, view, offset)
            except OSError as error:
                raise _error(error, f"{self.name} cannot be written at {offset}") from error
            view = view[written:]
            offset += written

    def write_parts(self, offset: int, parts: Sequence[bytes | bytearray | memoryview]) -> None:
        """All of `parts`, one behind the other, from `offset` on. Raises NoSpaceError or TargetError."""
        for first in range(0, len(parts), _MOST_PARTS):
            some = parts[first : first + _MOST_PARTS]
            size = sum(map(len, some))
            try:
                written = os.pwritev(self._fd, some, offset)
            except OSError as error:
                raise _error(error, f"{self.name} cannot be written at {offset}") from error
            if written < size:
                self.write_at(offset + written, b"".join(some)[written:])
            offset += size

    def read_at(self, offset: int, size: int) -> bytes:
        """Up to `size` bytes from `offset`."""
        try:
            return os.pread(self._fd, size, offset)
        except OSError as error:
            raise _error(error, f"{self.name} cannot be read back at {offset}") from error

    def sync(self) -> None:
        """Waits for stable storage. Raises when the kernel reports that writing back failed at any time before."""
        try:
            os.fsync(self._fd)
        except OSError as error:
            raise _error(error, f"{self.name} did not reach stable storage") from error

    def truncate(self, size: int) -> None:
        """Cuts the file to `size` bytes."""
        try:
            os.ftruncate(self._fd, size)
        except OSError as error:
            raise _error(error, f"{self.name} cannot be cut to {size} bytes") from error

    def reserve(self, size: int) -> None:
        """Takes `size` bytes of the filesystem now, so that they are there later. Raises NoSpaceError."""
        try:
            os.posix_fallocate(self._fd, 0, size)
        except OSError as error:
            raise _error(error, f"no room for {size} bytes of {self.name}") from error

    def free_bytes(self) -> int | None:
        """Room on the filesystem for this user, as it is now."""
        try:
            found = os.fstatvfs(self._fd)
        except OSError:
            return None
        return found.f_bavail * found.f_frsize

    def fileno(self) -> int:
        """The descriptor, for what only appends (targets.stream)."""
        return self._fd

    def scratch(self, size: int) -> mmap.mmap | None:
        """Room for `size` bytes in the folder of the file, under no name; None where there is none."""
        import tempfile  # not on the way of the machines whose bitmaps fit

        try:
            folder = os.path.dirname(os.readlink(f"/proc/self/fd/{self._fd}"))
            with tempfile.TemporaryFile(dir=folder) as file:
                # Taken now: a mapped page that finds no room later would be a signal that kills.
                os.posix_fallocate(file.fileno(), 0, size)
                return mmap.mmap(file.fileno(), size)
        except (OSError, ValueError):
            return None

    def close(self) -> None:
        """Closing twice is harmless. Raises what the filesystem has to say at close (NFS: ESTALE, EDQUOT)."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            try:
                os.close(fd)
            except OSError as error:
                raise _error(error, f"{self.name} cannot be closed") from error


class CrashDirectory:
    """One new directory for one crash."""

    def __init__(self, fd: int, path: Path, parent_fd: int, where: str) -> None:
        """Takes the descriptors over; `path` is the directory here, `where` inside its filesystem."""
        self._fd = fd
        self._parent_fd = parent_fd
        self.path = path
        self.where = where
        self.notes: list[str] = []

    @classmethod
    def create(cls, root: Path, directory: str, name: str) -> CrashDirectory:
        """Makes `root`/`directory`/`name`, and whatever of `directory` is missing, without following any link.

        Another crash of the same name gets a number behind it. Raises TargetError.
        """
        top = _open_root(root)
        try:
            fd = _open_or_make(top, directory, root)
        finally:
            os.close(top)
        shown = root.joinpath(*_parts(directory))
        try:
            for number in range(1, _MAX_SAME_NAME):
                candidate = name if number == 1 else f"{name}-{number}"
                if _make_directory(candidate, fd, shown / candidate):
                    inner = _open_folder(fd, candidate, shown / candidate)
                    created = cls(inner, shown / candidate, fd, f"{directory.rstrip('/')}/{candidate}")
                    try:
                        _require_ours(inner, shown / candidate)
                        created.sync()
                    except BaseException:
                        os.close(inner)
                        raise
                    return created
            raise TargetError(f"{shown} already holds {_MAX_SAME_NAME} crashes named {name}")
        except BaseException:
            os.close(fd)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        os.close(self._fd)
        os.close(self._parent_fd)

    def link(self, name: str, target: str) -> None:
        """A symbolic link, which nobody here follows. Raises TargetError."""
        try:
            os.symlink(target, name, dir_fd=self._fd)
        except OSError as error:
            raise _error(error, f"{self.path / name} cannot be made") from error

    def create_file(self, name: str) -> OutputFile:
        """A new file, 0600. Raises TargetError when the name is taken."""
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            fd = os.open(name, flags, FILE_MODE, dir_fd=self._fd)
        except OSError as error:
            raise _error(error, f"{self.path / name} cannot be made") from error
        # A server may call root somebody else, but then for folder and file alike. Otherwise somebody put a folder of
        # his own in the place of the one that was made, and could take the file away.
        if os.fstat(fd).st_uid != os.fstat(self._fd).st_uid:
            os.close(fd)
            self.remove(name)
            raise TargetError(f"{self.path} was exchanged for a folder of somebody else; nothing was written")
        return OutputFile(fd, name)

    def stored(self, name: str) -> Stored:
        """As Store.stored."""
        return open_stored(self.path / name)

    def digest(self, name: str, offset: int, size: int) -> None:
        """The kernel that wrote it is the only one who could tell."""

    def remove(self, name: str) -> None:
        """Takes a file away, which gives its room back; nothing when that fails."""
        with contextlib.suppress(OSError):
            os.unlink(name, dir_fd=self._fd)

    def discard(self) -> None:
        """Takes the folder away if it is empty; nothing when that fails."""
        with contextlib.suppress(OSError):
            os.rmdir(self.path.name, dir_fd=self._parent_fd)

    def rename(self, old: str, new: str) -> None:
        """Gives a file its final name and makes that durable. Raises TargetError, also when the folder itself has no
        longer the name that it was made with."""
        try:
            os.rename(old, new, src_dir_fd=self._fd, dst_dir_fd=self._fd)
        except OSError as error:
            raise _error(error, f"{self.path / old} cannot be renamed to {new}") from error
        self.sync()
        try:
            there = os.stat(self.path.name, dir_fd=self._parent_fd, follow_symlinks=False)
        except OSError as error:
            raise _error(error, f"{self.path}, in which the dump is, cannot be seen any more") from error
        if not os.path.samestat(there, os.fstat(self._fd)):
            raise TargetError(f"{self.path} is no longer the folder in which the dump is: somebody moved it away")

    def sync(self) -> None:
        """Makes the names in this directory, and its own name, durable."""
        try:
            os.fsync(self._fd)
            os.fsync(self._parent_fd)
        except OSError as error:
            raise _error(error, f"{self.path} did not reach stable storage") from error


def _parts(directory: str) -> list[str]:
    return [part for part in directory.split("/") if part not in ("", ".")]


def _open_root(path: Path) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise _error(error, f"{path} cannot be opened") from error


def _open_or_make(top: int, directory: str, root: Path) -> int:
    """The folder `directory` below `top`, made as far as it is missing."""
    parts = _parts(directory)
    fd = _open_folder(top, "", root)
    shown = root
    try:
        for number, part in enumerate(parts):
            shown = shown / part
            if part == "..":
                raise TargetError(f"{shown} leads out of the target")
            _make_directory(part, fd, shown)
            # From the top each time: what is above may have been exchanged meanwhile.
            below = _open_folder(top, "/".join(parts[: number + 1]), shown)
            os.close(fd)
            fd = below
    except BaseException:
        os.close(fd)
        raise
    return fd


def _open_folder(folder: int, path: str, shown: Path) -> int:
    try:
        return open_folder(folder, path)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR, errno.EXDEV):
            raise TargetError(f"{shown} is not a directory; a link is not followed") from error
        raise _error(error, f"{shown} cannot be opened") from error


def _make_directory(name: str, dir_fd: int, shown: Path) -> bool:
    """Whether it was made; False when something has that name."""
    try:
        os.mkdir(name, DIRECTORY_MODE, dir_fd=dir_fd)
    except FileExistsError:
        return False
    except OSError as error:
        raise _error(error, f"{shown} cannot be made") from error
    return True


def _require_ours(fd: int, shown: Path) -> None:
    """That a folder which was made a moment ago is still the one that was opened."""
    found = os.fstat(fd)
    if found.st_mode & (stat.S_IRWXG | stat.S_IRWXO) or os.listdir(fd):
        raise TargetError(f"{shown} was exchanged for another folder; nothing was written")
