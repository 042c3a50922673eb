# SPDX-License-Identifier: GPL-2.0-or-later
"""A dump that lies in a file, read at any offset, whether it lies there as it is, flattened or encrypted."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from kdumpd.dumpfile.flattened import HEADER_SIZE, FlattenedFile, is_flattened
from kdumpd.errors import DumpFormatError, os_reason

if TYPE_CHECKING:
    from kdumpd.dumpfile.sealed import FileKey

AGE_VERSION = b"age-encryption.org/v1"


class Stored(Protocol):
    """`size` is that of the dump in bytes; `complete` is False when a stream that carried it was cut."""

    name: str
    size: int
    complete: bool

    def read_at(self, offset: int, size: int) -> bytes:
        """Up to `size` bytes from `offset`; fewer at the end. Raises DumpFormatError."""

    def close(self) -> None:
        """Closing twice is harmless."""


class PlainFile:
    """A dump as it is."""

    complete = True

    def __init__(self, fd: int, path: Path) -> None:
        """Takes `fd` over."""
        self.name = str(path)
        self._fd = fd
        self.size = os.lseek(fd, 0, os.SEEK_END)

    def read_at(self, offset: int, size: int) -> bytes:
        """Up to `size` bytes from `offset`; fewer at the end. Raises DumpFormatError."""
        size = min(size, self.size - offset)
        if offset < 0 or size <= 0:
            return b""
        try:
            return os.pread(self._fd, size, offset)
        except OSError as error:
            raise DumpFormatError(f"{self.name} cannot be read at {offset}: {os_reason(error)}") from error

    def fileno(self) -> int:
        """The descriptor."""
        return self._fd

    def close(self) -> None:
        """Closing twice is harmless."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def open_stored(path: Path, find_key: FileKey | None = None) -> Stored:
    """The dump at `path`; one that is encrypted with the key that `find_key` finds, else as it is.

    Raises DumpFormatError when `path` cannot be opened, or begins as a flattened dump and is none.
    """
    file = open_plain(path)
    try:
        return decoded(file, find_key)
    except BaseException:
        file.close()
        raise


def decoded(file: Stored, find_key: FileKey | None = None) -> Stored:
    """The dump in `file`, which is closed with it. Raises DumpFormatError, and what `find_key` raises."""
    if find_key is not None and is_encrypted(file.read_at(0, HEADER_SIZE)):
        from kdumpd.dumpfile.sealed import SealedFile

        file = SealedFile(file, find_key)
    return FlattenedFile(file) if is_flattened(file.read_at(0, HEADER_SIZE)) else file


def is_encrypted(start: bytes) -> bool:
    """Whether a file that begins with `start` is one of age(1). Here, as dumpfile.age is only loaded for such."""
    return start.startswith(AGE_VERSION + b"\n")


def open_plain(path: Path) -> PlainFile:
    """The file at `path` as it is. Raises DumpFormatError when it cannot be opened."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise DumpFormatError(f"{path} cannot be opened: {os_reason(error)}") from error
    try:
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            raise DumpFormatError(f"{path} cannot be read: it is a directory")
        return PlainFile(fd, path)
    except OSError as error:
        os.close(fd)
        raise DumpFormatError(f"{path} cannot be read: {os_reason(error)}") from error
    except BaseException:
        os.close(fd)
        raise
