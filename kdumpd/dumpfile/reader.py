# SPDX-License-Identifier: GPL-2.0-or-later
"""Reads a kdump-compressed dump back, ours or makedumpfile's, as it is or flattened."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt

from kdumpd.dumpfile.codecs import Unpacker
from kdumpd.dumpfile.diskdump import BLOCK_SIZE, DESCRIPTOR, Header, Status, unpack_headers
from kdumpd.dumpfile.stored import open_stored
from kdumpd.errors import DumpFormatError

_RANK_STEP = 4096  # bytes of bitmap between two remembered counts


class DiskdumpReader:
    """An open dump. Raises DumpFormatError when the file is no dump or contradicts itself."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = open_stored(path)
        self.size = self._file.size
        try:
            self.header: Header = unpack_headers(self._at(0, BLOCK_SIZE), self._at(BLOCK_SIZE, BLOCK_SIZE), str(path))
            self.present = self._bitmap(self.header.present_offset)
            self.dumped = self._bitmap(self.header.dumped_offset)
        except BaseException:
            self._file.close()
            raise
        counts = np.unpackbits(self.dumped).reshape(-1, _RANK_STEP * 8).sum(axis=1, dtype=np.int64)
        self._ranks = np.concatenate((np.zeros(1, dtype=np.int64), np.cumsum(counts)))
        self._unpacker = Unpacker()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()

    def _at(self, offset: int, size: int) -> bytes:
        """What the file holds there; sizes and offsets come from the file itself and are not to be trusted."""
        return self._file.read_at(offset, size) if offset >= 0 and size > 0 else b""

    def _bitmap(self, offset: int) -> npt.NDArray[np.uint8]:
        size = self.header.bitmap_bytes
        raw = self._at(offset, size)
        if len(raw) < size:
            raise DumpFormatError(f"{self.path} ends inside its bitmaps")
        return np.frombuffer(raw, dtype=np.uint8)

    @property
    def incomplete(self) -> bool:
        """Whether the header says that pages are missing, or the stream that carried the dump was cut."""
        return bool(self.header.status & Status.INCOMPLETE) or not self._file.complete

    @property
    def page_count(self) -> int:
        """Pages that should have a descriptor."""
        return int(self._ranks[-1])

    @property
    def present_count(self) -> int:
        """Pages that the machine had."""
        return int(np.unpackbits(self.present).sum(dtype=np.int64))

    def pfns(self) -> npt.NDArray[np.int64]:
        """The page frames that were dumped, ascending."""
        return np.flatnonzero(np.unpackbits(self.dumped, bitorder="little")).astype(np.int64)

    def notes(self) -> bytes:
        """The ELF notes."""
        return self._at(self.header.note_offset, self.header.note_size)

    def page(self, pfn: int) -> bytes | None:
        """One page; None when it was left out or lost. Raises DumpFormatError when its bytes are damaged."""
        index, mask = pfn >> 3, (1 << (pfn & 7)) - 1
        if pfn < 0 or index >= len(self.dumped) or not int(self.dumped[index]) >> (pfn & 7) & 1:
            return None
        step = index // _RANK_STEP
        before = np.unpackbits(self.dumped[step * _RANK_STEP : index]).sum(dtype=np.int64)
        rank = int(self._ranks[step]) + int(before) + (int(self.dumped[index]) & mask).bit_count()
        return self.page_of_descriptor(rank, f"{self.path}: pfn {pfn:#x}")

    def page_of_descriptor(self, rank: int, source: str) -> bytes | None:
        """The page of the descriptor number `rank`."""
        raw = self._at(self.header.descriptor_offset + rank * DESCRIPTOR.size, DESCRIPTOR.size)
        if len(raw) < DESCRIPTOR.size:
            return None
        offset, size, flags, _ = DESCRIPTOR.unpack(raw)
        if offset == 0:
            return None
        if not 0 < size <= BLOCK_SIZE or offset < 0:
            raise DumpFormatError(f"{source} has a descriptor of {size} bytes at {offset}")
        data = self._at(offset, size)
        if len(data) < size:
            raise DumpFormatError(f"{source} ends inside a page")
        return self._unpacker.page(data, flags, source)


def verify(path: Path, sample: int = 64) -> None:
    """Opens the dump at `path` as a reader would: headers, bitmaps, every descriptor, and `sample` pages decoded.

    Raises DumpFormatError with the first contradiction. The pages are spread evenly, the last one is always among
    them, because it is the first to be missing from a file that is too short.
    """
    with DiskdumpReader(path) as dump:
        if dump.incomplete:
            raise DumpFormatError(f"{path} says of itself that it is incomplete")
        total = dump.page_count
        missing = np.flatnonzero(dump.dumped & ~dump.present)
        if len(missing):
            raise DumpFormatError(
                f"{path} holds pages that the machine does not have, near pfn {int(missing[0]) * 8:#x}"
            )
        at, end = dump.header.descriptor_offset, dump.header.descriptor_offset + total * DESCRIPTOR.size
        data_start = end
        while at < end:
            raw = dump._at(at, min(1 << 20, end - at) // DESCRIPTOR.size * DESCRIPTOR.size)
            if not raw or len(raw) % DESCRIPTOR.size:
                raise DumpFormatError(f"{path} ends inside its page descriptors")
            table = np.frombuffer(raw, dtype="<i8").reshape(-1, 3)
            sizes = table[:, 1] & 0xFFFFFFFF
            bad = (table[:, 0] < data_start) | (sizes < 1) | (sizes > BLOCK_SIZE) | (table[:, 0] + sizes > dump.size)
            if bad.any():
                number = (at - dump.header.descriptor_offset) // DESCRIPTOR.size + int(np.flatnonzero(bad)[0])
                raise DumpFormatError(f"{path}: the descriptor of page {number} of {total} points outside the file")
            at += len(raw)
        for rank in sorted({*range(0, total, max(1, total // sample)), total - 1} if total else set()):
            dump.page_of_descriptor(rank, f"{path}: page {rank} of {total}")
