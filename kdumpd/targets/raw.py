# SPDX-License-Identifier: GPL-2.0-or-later
"""A block device without a filesystem: the files of a crash one behind the other, a table of contents before them.

The service copies what is there into `path` at the next boot and empties the table (crashes.recover). A crash that
comes before that is written behind the ones that are there.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import mmap
import os
import stat
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from kdumpd.config.capture import RawDestination
from kdumpd.dumpfile.stored import Stored, decoded
from kdumpd.errors import DumpFormatError, NoSpaceError, TargetError, os_reason
from kdumpd.targets.layers import bring_up
from kdumpd.targets.raw_find import wait_for_disk
from kdumpd.targets.raw_layout import DATA_AT, SLOT_BYTES, Contents, RawCrash, RawFile, encode, newest, rounded
from kdumpd.targets.signatures import owner
from kdumpd.targets.target import Store, Target

_SMALL_FILE = 1 << 20
_OPEN_FILE_ROOM = 64 << 10
_ZEROS = bytes(1 << 20)
_MAX_SAME_NAME = 1000


class RawDisk(Target):
    """A destination on a raw device; `device_deadline_sec` is how long that may take to appear."""

    def __init__(self, destination: RawDestination, device_deadline_sec: float) -> None:
        self.name = str(destination)
        self._destination = destination
        self._device_deadline_sec = device_deadline_sec

    @contextlib.contextmanager
    def open_crash(self, name: str, alive: Callable[[], None]) -> Iterator[Store]:
        """As Target.open_crash. Raises TargetError also when the device holds something of somebody else."""
        wanted = self._destination
        made = bring_up(wanted.layers, self._device_deadline_sec, alive)
        path = made or wait_for_disk(wanted, self._device_deadline_sec, alive)
        with RawDevice(path) as device:
            yield RawStore(device, name, str(wanted))


class RawDevice:
    """The device, open for writing and for nobody else; `contents` is its table."""

    def __init__(self, path: Path) -> None:
        """Raises TargetError for a device that is in use, or that holds something else than dumps of ours."""
        self.path = path
        self._fd = _open(path)
        try:
            self.size_bytes = os.lseek(self._fd, 0, os.SEEK_END)
            self.contents = self._read_contents()
        except BaseException:
            os.close(self._fd)
            raise

    def _read_contents(self) -> Contents:
        found = newest(self.read(0, SLOT_BYTES), self.read(SLOT_BYTES, SLOT_BYTES))
        # Behind a table of ours there are dumps, in which anything may look like anything.
        held = owner(self.read, self.size_bytes, within=None if found is None else DATA_AT)
        if held is not None:
            raise TargetError(
                f"{self.path} holds {held}, which a raw dump would destroy",
                hint=f"if it is not needed any more, on the running system: wipefs --all {self.path}",
            )
        if self.size_bytes < 2 * DATA_AT:
            raise NoSpaceError(f"{self.path} has {self.size_bytes} bytes, too few for any dump")
        return Contents(sequence=0) if found is None else found

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        os.close(self._fd)

    def read(self, offset: int, size: int) -> bytes:
        """Up to `size` bytes from `offset`. Raises TargetError."""
        parts = []
        try:
            while size > 0 and (data := os.pread(self._fd, size, offset)):
                parts.append(data)
                offset += len(data)
                size -= len(data)
        except OSError as error:
            raise TargetError(f"{self.path} cannot be read at {offset}: {os_reason(error)}") from error
        return b"".join(parts)

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """All of `data` at `offset`. Raises NoSpaceError or TargetError."""
        view = memoryview(data).cast("B")
        if offset + len(view) > self.size_bytes:
            raise NoSpaceError(f"{self.path} is full")
        try:
            while view:
                count = os.pwrite(self._fd, view, offset)
                view = view[count:]
                offset += count
        except OSError as error:
            raise TargetError(f"{self.path} cannot be written at {offset}: {os_reason(error)}") from error

    def sync(self) -> None:
        """Waits for stable storage. Raises TargetError."""
        try:
            os.fsync(self._fd)
        except OSError as error:
            raise TargetError(
                f"{self.path}: what was written did not reach stable storage: {os_reason(error)}"
            ) from error

    def commit(self, crashes: tuple[RawCrash, ...]) -> None:
        """Makes `crashes` what the device holds, once all that was written before is on it. Raises TargetError."""
        contents = Contents(sequence=self.contents.sequence + 1, crashes=crashes)
        try:
            slot = encode(contents)
        except ValueError as error:
            raise NoSpaceError(f"{self.path}: {error}") from error
        self.sync()
        self.write(contents.slot, slot)
        self.sync()
        self.contents = contents

    def clear(self) -> None:
        """Forgets all crashes, in both slots: what comes next lies where they lie now."""
        self.commit(())
        self.commit(())


class RawSink:
    """A file on the device (targets.target.StoredFile). `room` is what it may grow to, None for the whole rest."""

    rewritable = True

    def __init__(self, device: RawDevice, name: str, offset: int, on_sync: Callable[[], None]) -> None:
        self._device = device
        self._on_sync = on_sync
        self.name = name
        self.offset = offset
        self.size = 0
        self.room: int | None = None
        self.reserved = 0
        self.open = True

    @property
    def end(self) -> int:
        """Where the next file may begin."""
        return self.offset + (rounded(self.size) if self.room is None else self.room)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _most(self) -> int:
        return self._device.size_bytes - self.offset if self.room is None else self.room

    def write_at(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """All of `data` at `offset`. Raises NoSpaceError or TargetError."""
        length = memoryview(data).nbytes
        if offset + length > self._most():
            raise NoSpaceError(f"{self.name} cannot be written at {offset}: {self._device.path} is full")
        # Between what was written there are zeros, not what an older dump left.
        while self.size < offset:
            piece = min(len(_ZEROS), offset - self.size)
            self._device.write(self.offset + self.size, memoryview(_ZEROS)[:piece])
            self.size += piece
        self._device.write(self.offset + offset, data)
        self.size = max(self.size, offset + length)

    def write_parts(self, offset: int, parts: Sequence[bytes | bytearray | memoryview]) -> None:
        """All of `parts`, one behind the other, from `offset` on. Raises NoSpaceError or TargetError."""
        for part in parts:
            self.write_at(offset, part)
            offset += memoryview(part).nbytes

    def read_at(self, offset: int, size: int) -> bytes:
        """Up to `size` bytes from `offset`."""
        return self._device.read(self.offset + offset, max(0, min(size, self.size - offset)))

    def sync(self) -> None:
        """Waits for stable storage; from then on the table of contents has the file as it is. Raises TargetError."""
        self._on_sync()

    def truncate(self, size: int) -> None:
        """Cuts the file to `size` bytes, or fills it up with zeros."""
        if size > self.size:
            self.write_at(size, b"")
        self.size = size

    def reserve(self, size: int) -> None:
        """Keeps `size` bytes for this file, whatever is made behind it. Raises NoSpaceError."""
        if size > self._most():
            raise NoSpaceError(f"no room for {size} bytes of {self.name}: {self._device.path} is full")
        self.reserved = max(self.reserved, size)

    def free_bytes(self) -> int:
        """What the file may still grow by."""
        return max(0, self._most() - self.size)

    def scratch(self, size: int) -> mmap.mmap | None:
        """None: there is no filesystem."""
        return None

    def close(self) -> None:
        """The file grows no more."""
        self.open = False


class RawStore:
    """One crash on the device (targets.target.Store)."""

    def __init__(self, device: RawDevice, name: str, where: str) -> None:
        """Raises TargetError when the device cannot be written."""
        self._device = device
        self._others = device.contents.crashes
        self._next = device.contents.end
        names = {crash.name for crash in self._others}
        candidates = (name if number == 1 else f"{name}-{number}" for number in range(1, _MAX_SAME_NAME))
        self._name = next(candidate for candidate in candidates if candidate not in names)
        self._files: dict[str, RawSink] = {}
        self._lock = threading.Lock()
        self.where = f"{where}, {self._name}"
        self.notes: list[str] = []
        device.commit(self._others)  # the device is ours from now on

    def create_file(self, name: str) -> RawSink:
        """As Store.create_file. A file that is still open then grows no further than what it has reserved."""
        if name in self._files:
            raise TargetError(f"{self.where} already has a {name}")
        for file in self._files.values():
            if file.open and file.room is None:
                file.room = rounded(max(file.size, file.reserved, _OPEN_FILE_ROOM))
            self._next = max(self._next, file.end)
        if self._next >= self._device.size_bytes:
            raise NoSpaceError(f"{name} cannot be made: {self._device.path} is full")
        self._files[name] = RawSink(self._device, name, self._next, self.sync)
        return self._files[name]

    def remove(self, name: str) -> None:
        """As Store.remove."""
        self._files.pop(name, None)
        self._next = max([self._device.contents.end if not self._files else 0, *self._ends()])

    def _ends(self) -> list[int]:
        return [file.end for file in self._files.values()]

    def rename(self, old: str, new: str) -> None:
        """As Store.rename."""
        if old not in self._files:
            raise TargetError(f"{self.where}: {old} cannot be renamed to {new}: there is none")
        file = self._files.pop(old)
        self._files[new] = file
        file.name = new
        self.sync()

    def sync(self) -> None:
        """As Store.sync: the table of contents names the files with the sizes that they have now."""
        with self._lock:  # a checkpoint may be written beside the pages
            files = tuple(
                RawFile(name=name, offset=file.offset, size_bytes=file.size, sha256=self._digest(file))
                for name, file in self._files.items()
            )
            self._device.commit((*self._others, RawCrash(name=self._name, files=files)))

    def _digest(self, file: RawSink) -> str | None:
        return hashlib.sha256(file.read_at(0, file.size)).hexdigest() if file.size <= _SMALL_FILE else None

    def stored(self, name: str) -> Stored:
        """As Store.stored."""
        if name not in self._files:
            raise DumpFormatError(f"{self.where} has no {name}")
        return decoded(RawStored(self._files[name]))

    def digest(self, name: str, offset: int, size: int) -> None:
        """The kernel that wrote it is the only one who could tell."""


class RawStored:
    """A file on the device, read back (dumpfile.stored.Stored)."""

    complete = True

    def __init__(self, file: RawSink) -> None:
        self._file = file
        self.name = file.name
        self.size = file.size

    def read_at(self, offset: int, size: int) -> bytes:
        """Up to `size` bytes from `offset`; fewer at the end. Raises DumpFormatError."""
        try:
            return self._file.read_at(offset, size) if offset >= 0 else b""
        except TargetError as error:
            raise DumpFormatError(error.sentence, hint=error.hint) from error

    def close(self) -> None:
        """The device stays open."""


def _open(path: Path) -> int:
    # Of a block device, O_EXCL wants that nobody has it mounted or made something of it (open(2)).
    try:
        fd = os.open(path, os.O_RDWR | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        reason = "it is in use" if error.errno == errno.EBUSY else os_reason(error)
        raise TargetError(f"{path} cannot be opened for writing: {reason}") from error
    kind = os.fstat(fd).st_mode
    if not stat.S_ISBLK(kind) and not stat.S_ISREG(kind):
        os.close(fd)
        raise TargetError(f"{path} is no block device")
    return fd
