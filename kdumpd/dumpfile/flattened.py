# SPDX-License-Identifier: GPL-2.0-or-later
"""The flattened format: a dump as a stream of records, for pipes and targets that cannot seek.

    4096 bytes of header | record, record, ... | end record

A record is the offset and size of a piece of the dump, big-endian, and its bytes; the end record has -1 for both
(makedumpfile: IMPLEMENTATION). Records come in any order. A stream without its end record was cut: this is the
format's only mark of completeness, so it is sent when the dump inside is complete, and never before.
"""

from __future__ import annotations

import array
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from kdumpd.dumpfile.codecs import Buffer
from kdumpd.dumpfile.sink import Stream
from kdumpd.errors import DumpFormatError, UnsupportedError
from kdumpd.vmcore.arrays import NDArray

if TYPE_CHECKING:
    from kdumpd.dumpfile.sealed import FileKey
    from kdumpd.dumpfile.stored import Stored

SIGNATURE = b"makedumpfile\0\0\0\0"
HEADER_SIZE = 4096
_HEADER = struct.Struct(">16sqq")
_RECORD = struct.Struct(">qq")
_TYPE = _VERSION = 1
_END = -1
_COPY = 1 << 20

Read = Callable[[int], bytes]
"""Up to that many bytes of a stream; nothing at its end."""


class FlattenedSink:
    """A Sink whose writes become records of a stream. Each offset is written once: crash(8) trusts that."""

    rewritable = False

    def __init__(self, stream: Stream) -> None:
        """Sends the header."""
        self.name = stream.name
        self._stream = stream
        stream.send(_HEADER.pack(SIGNATURE, _TYPE, _VERSION).ljust(HEADER_SIZE, b"\0"))

    def write_at(self, offset: int, data: Buffer) -> None:
        """One record."""
        if len(data):
            self._stream.send(_RECORD.pack(offset, len(data)), data)

    def write_parts(self, offset: int, parts: Sequence[Buffer]) -> None:
        """One record."""
        size = sum(map(len, parts))
        if size:
            self._stream.send(_RECORD.pack(offset, size), *parts)

    def read_at(self, offset: int, size: int) -> bytes:
        """Never: a stream has no way back."""
        raise UnsupportedError(f"{self.name} is a stream, from which nothing can be read back")

    def reserve(self, size: int) -> None:
        """A stream has no room to take beforehand."""

    def free_bytes(self) -> int | None:
        """Not known: the room is at the other end."""
        return None

    def scratch(self, size: int) -> None:
        """There is no place beside a stream."""

    def sync(self) -> None:
        """As the stream does it."""
        self._stream.sync()

    @property
    def find_key(self) -> FileKey | None:
        """What opens the dump in the stream, where it is encrypted, as long as it is written."""
        return None

    def leave(self) -> None:
        """Nothing more comes, and the dump is incomplete: without its end record the stream says so."""

    def end(self) -> None:
        """The record that says that the dump is complete; the last thing that is sent."""
        self._stream.send(_RECORD.pack(_END, _END))
        self._stream.sync()


def is_flattened(start: bytes) -> bool:
    """Whether a file that begins with `start` is a flattened dump."""
    return start[: len(SIGNATURE)] == SIGNATURE


def check_header(header: bytes, source: str) -> None:
    """Raises DumpFormatError naming `source` unless `header`, its first HEADER_SIZE bytes, is of this format."""
    if not is_flattened(header):
        raise DumpFormatError(f"{source} is not a flattened dump")
    if len(header) < HEADER_SIZE:
        raise DumpFormatError(f"{source} ends inside its header")
    _, kind, version = _HEADER.unpack_from(header)
    if (kind, version) != (_TYPE, _VERSION):
        raise DumpFormatError(f"{source} is a flattened dump of type {kind}, version {version}, which is not read")


def stream_records(read: Read, source: str) -> Iterator[tuple[int, Iterator[bytes]]]:
    """The records of a stream behind its header: offset, and the pieces of its bytes, to be taken before the next.

    Returns at the end record. Raises DumpFormatError naming `source` where the stream makes no sense, EOFError
    where it was cut; a record's last bytes are given even when it was cut inside.
    """
    while True:
        offset, size = _RECORD.unpack(_exactly(read, _RECORD.size))
        if (offset, size) == (_END, _END):
            return
        if offset < 0 or size <= 0 or offset + size >= 1 << 63:
            raise DumpFormatError(f"{source} has a record of {size} bytes for offset {offset}")
        left = _Left(size)
        yield offset, _pieces(read, left)
        if left.size:
            raise EOFError


class _Left:
    """How much of a record is still to come."""

    def __init__(self, size: int) -> None:
        self.size = size


def _pieces(read: Read, left: _Left) -> Iterator[bytes]:
    while left.size:
        data = read(min(_COPY, left.size))
        if not data:
            return
        left.size -= len(data)
        yield data


def _exactly(read: Read, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = read(size - len(data))
        if not more:
            raise EOFError
        data += more
    return data


class FlattenedFile:
    """A flattened dump in a file, read as the dump that it holds. `complete` is whether the end record is there, in a
    file that is complete itself."""

    def __init__(self, file: Stored) -> None:
        """Takes `file` over. Reads the heads of all records: 24 bytes of memory for each.

        Raises DumpFormatError when this is no flattened dump or a record makes no sense.
        """
        self.name = file.name
        self._file = file
        check_header(file.read_at(0, HEADER_SIZE), self.name)
        self.complete = False
        starts, sizes, places = self._index()
        order = np.argsort(starts, kind="stable")
        self._order = order
        self._starts: NDArray[np.int64] = starts[order]
        self._sizes: NDArray[np.int64] = sizes[order]
        self._places: NDArray[np.int64] = places[order]
        ends = self._starts + self._sizes
        # A record may cover a later one: to find all that reach an offset, search in the highest end so far.
        self._reach = np.maximum.accumulate(ends) if len(ends) else ends
        self.size = int(ends.max()) if len(ends) else 0

    def _index(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        starts, sizes, places = array.array("q"), array.array("q"), array.array("q")
        at = HEADER_SIZE
        while True:
            head = self._file.read_at(at, _RECORD.size)
            if len(head) < _RECORD.size:
                break
            offset, size = _RECORD.unpack(head)
            if (offset, size) == (_END, _END):
                self.complete = self._file.complete
                break
            if offset < 0 or size <= 0 or offset + size >= 1 << 63:
                raise DumpFormatError(f"{self.name} has a record of {size} bytes for offset {offset} at {at}")
            at += _RECORD.size
            size = min(size, self._file.size - at)
            if size <= 0:
                break
            starts.append(offset)
            sizes.append(size)
            places.append(at)
            at += size
        columns = (np.frombuffer(each, dtype=np.int64) for each in (starts, sizes, places))
        return next(columns), next(columns), next(columns)

    def read_at(self, offset: int, size: int) -> bytes:
        """Up to `size` bytes of the dump from `offset`; zeros where no record wrote. Raises DumpFormatError."""
        size = min(size, self.size - offset)
        if size <= 0:
            return b""
        first = int(np.searchsorted(self._reach, offset, side="right"))
        last = int(np.searchsorted(self._starts, offset + size, side="left"))
        if last == first + 1:
            start, place = int(self._starts[first]), int(self._places[first])
            if start <= offset and offset + size <= start + int(self._sizes[first]):
                return self._file.read_at(place + offset - start, size)
        out = bytearray(size)
        # Of records that overlap the later in the stream holds.
        for index in sorted(range(first, last), key=lambda each: int(self._order[each])):
            start, length = int(self._starts[index]), int(self._sizes[index])
            begin, end = max(start, offset), min(start + length, offset + size)
            if begin < end:
                data = self._file.read_at(int(self._places[index]) + begin - start, end - begin)
                out[begin - offset : begin - offset + len(data)] = data
        return bytes(out)

    def close(self) -> None:
        """Closing twice is harmless."""
        self._file.close()
