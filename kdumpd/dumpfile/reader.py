# SPDX-License-Identifier: GPL-2.0-or-later
"""Reads a kdump-compressed dump back, ours or makedumpfile's, as it is or flattened, and checks it.

Bitmaps and descriptors are read in pieces as they are needed: what is held does not grow with the dump, but for a
count for every 4096 pages.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from kdumpd.dumpfile.codecs import Unpacker
from kdumpd.dumpfile.diskdump import DESCRIPTOR, DESCRIPTORS, Codec, Header, Status, read_headers
from kdumpd.dumpfile.ranks import Bytes, Ranks
from kdumpd.dumpfile.stored import Stored, open_stored
from kdumpd.errors import DumpFormatError
from kdumpd.vmcore.arrays import NDArray, count_bits, ints
from kdumpd.vmcore.memory import CrashedMemory

_STEP = 1 << 18  # bytes of bitmap or descriptors looked at in one go
_CODECS = np.array([int(codec) for codec in Codec], dtype=np.uint32)
SAMPLE = 64
_PAGES_AT_ONCE = 4096
_BYTES_AT_ONCE = 1 << 17  # of the memory that a dump is compared with

Pfns = NDArray[np.int64]


class DiskdumpReader:
    """An open dump. Raises DumpFormatError when the file is no dump or contradicts itself."""

    def __init__(self, place: Path | Stored) -> None:
        """`place` is a path, or a dump that is open already; it is closed with the reader."""
        self._file = open_stored(place) if isinstance(place, Path) else place
        self.path = path = self._file.name
        self.size = self._file.size
        try:
            self.header: Header = read_headers(self.bytes_at, str(path))
            if self.header.dumped_offset + self.header.bitmap_bytes > self.size:
                raise DumpFormatError(f"{path} ends inside its bitmaps")
            self._ranks = Ranks(self.header.bitmap_bytes, self.dumped)
            # A part of a split dump has the bitmaps of the whole, and descriptors for its own pages.
            self.first_rank, self.end_rank = 0, self._ranks.count
            if self.header.split:
                bounds = np.array([self.header.start_pfn, self.header.end_pfn], dtype=np.int64)
                self.first_rank, self.end_rank = ints(self._ranks.find(bounds)[0])
        except BaseException:
            self._file.close()
            raise
        self._unpacker = Unpacker(self.header.block_size)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()

    def bytes_at(self, offset: int, size: int) -> bytes:
        """What the file holds there; sizes and offsets come from the file itself and are not to be trusted."""
        return self._file.read_at(offset, size) if offset >= 0 and size > 0 else b""

    def _bits(self, start: int, at: int, size: int) -> Bytes:
        return np.frombuffer(self.bytes_at(start + at, size).ljust(size, b"\0"), dtype=np.uint8)

    def dumped(self, at: int, size: int) -> Bytes:
        """`size` bytes of the bitmap of pages that were dumped, from its byte `at` on."""
        return self._bits(self.header.dumped_offset, at, size)

    def present(self, at: int, size: int) -> Bytes:
        """The same of the bitmap of pages that the machine had."""
        return self._bits(self.header.present_offset, at, size)

    def pieces(self) -> Iterator[tuple[int, int]]:
        """Offset and size of the pieces in which to go through a bitmap."""
        for at in range(0, self.header.bitmap_bytes, _STEP):
            yield at, min(_STEP, self.header.bitmap_bytes - at)

    @property
    def incomplete(self) -> bool:
        """Whether the header says that pages are missing, or the stream that carried the dump was cut."""
        return bool(self.header.status & Status.INCOMPLETE) or not self._file.complete

    @property
    def page_count(self) -> int:
        """Pages that should have a descriptor."""
        return self.end_rank - self.first_rank

    def covers(self, pfn: int) -> bool:
        """Whether the page would be in this file, if it was dumped."""
        return not self.header.split or self.header.start_pfn <= pfn < self.header.end_pfn

    @property
    def whole_count(self) -> int:
        """Pages of all parts together, where this is one part of a split dump."""
        return self._ranks.count

    @property
    def present_count(self) -> int:
        """Pages that the machine had."""
        return sum(count_bits(self.present(at, size)) for at, size in self.pieces())

    def pfns(self) -> Pfns:
        """The page frames that were dumped, ascending; all of them at once."""
        return self._ranks.select(np.arange(self.first_rank, self.end_rank))

    def pfns_of(self, numbers: Sequence[int]) -> Iterator[tuple[int, int]]:
        """The ascending numbers of descriptors, each with its page frame."""
        pfns = self._ranks.select(np.array(numbers, dtype=np.int64) + self.first_rank)
        return zip(numbers, ints(pfns), strict=True)

    def notes(self) -> bytes:
        """The ELF notes."""
        return self.bytes_at(self.header.note_offset, self.header.note_size)

    def page(self, pfn: int) -> bytes | None:
        """One page; None when it was left out or lost. Raises DumpFormatError when its bytes are damaged."""
        if not 0 <= pfn < 1 << 52:
            return None
        (number,) = self.numbers_of([pfn])
        return None if number is None else self.page_of_descriptor(number, f"{self.path}: pfn {pfn:#x}")

    def numbers_of(self, pfns: Sequence[int]) -> list[int | None]:
        """For ascending page frames, the number of the descriptor of each; None for one that was left out."""
        ranks, there = self._ranks.find(np.array(pfns, dtype=np.int64))
        there &= (ranks >= self.first_rank) & (ranks < self.end_rank)
        numbers = zip(ints(ranks - self.first_rank), there.tolist(), strict=True)
        return [number if here else None for number, here in numbers]

    def page_of_descriptor(self, number: int, source: str) -> bytes | None:
        """The page of the descriptor `number`."""
        raw = self.bytes_at(self.header.descriptor_offset + number * DESCRIPTOR.size, DESCRIPTOR.size)
        if len(raw) < DESCRIPTOR.size:
            return None
        offset, size, flags, _ = DESCRIPTOR.unpack(raw)
        if offset == 0:
            return None
        if not 0 < size <= self.header.block_size or offset < 0:
            raise DumpFormatError(f"{source} has a descriptor of {size} bytes at {offset}")
        data = self.bytes_at(offset, size)
        if len(data) < size:
            raise DumpFormatError(f"{source} ends inside a page")
        return self._unpacker.page(data, flags, source)

    def descriptors(self) -> Iterator[tuple[int, NDArray[np.void]]]:
        """The table of descriptors in pieces, each with the number of its first. Raises DumpFormatError at its end,
        when the file ends before."""
        step = _STEP // DESCRIPTOR.size
        for first in range(0, self.page_count, step):
            count = min(step, self.page_count - first)
            raw = self.bytes_at(self.header.descriptor_offset + first * DESCRIPTOR.size, count * DESCRIPTOR.size)
            if len(raw) < count * DESCRIPTOR.size:
                raise DumpFormatError(f"{self.path} ends inside its page descriptors")
            yield first, np.frombuffer(raw, dtype=DESCRIPTORS)


def verify(
    place: Path | Stored,
    *,
    sample: int | None = SAMPLE,
    memory: CrashedMemory | None = None,
    needed: Mapping[str, Pfns] | None = None,
    unreadable: Collection[int] = (),
) -> int:
    """Opens the dump at `place` as a reader would: headers, bitmaps, every descriptor, and some pages unpacked.

    `sample` pages are taken at random, and the last one, which is the first to be missing from a file that is too
    short; None takes all of them. `needed` pages, by what they are, must be there. What is unpacked is compared with
    `memory`, but for the pages that were `unreadable` there. Returns how many pages were unpacked. Raises
    DumpFormatError with the first contradiction. What was open already is closed.
    """
    with DiskdumpReader(place) as dump:
        if dump.incomplete:
            raise DumpFormatError(f"{dump.path} says of itself that it is incomplete")
        _check_bitmaps(dump)
        _check_descriptors(dump)
        _check_notes(dump, memory)
        total = dump.page_count
        numbers: Sequence[int] = range(total)
        if sample is not None and total > sample:
            numbers = sorted({*random.sample(range(total), sample), total - 1})
        for at in range(0, len(numbers), _PAGES_AT_ONCE):
            some = dump.pfns_of(numbers[at : at + _PAGES_AT_ONCE])
            pages = [(pfn, number, f"page {number} of {total}") for number, pfn in some]
            _check_pages(dump, pages, memory, unreadable)
        pfns = {int(pfn): what for what, some in (needed or {}).items() for pfn in some}
        there = [pfn for pfn in sorted(pfns) if (memory is None or memory.has(pfn)) and dump.covers(pfn)]
        wanted = zip(there, dump.numbers_of(there), strict=True)
        _check_pages(dump, [(pfn, number, pfns[pfn]) for pfn, number in wanted], memory, unreadable)
        return len(numbers) + len(pfns)


def _check_bitmaps(dump: DiskdumpReader) -> None:
    for at, size in dump.pieces():
        dumped = dump.dumped(at, size)
        if not dumped.any():
            continue
        strange = np.flatnonzero(dumped & ~dump.present(at, size))
        if len(strange):
            near = (at + int(strange[0])) * 8
            raise DumpFormatError(f"{dump.path} holds pages that the machine does not have, near pfn {near:#x}")
        # The bits behind the last page frame are padding.
        last = np.flatnonzero(dumped)[-1:]
        if len(last) and (at + int(last[0])) * 8 + int(dumped[last[0]]).bit_length() > dump.header.max_mapnr:
            raise DumpFormatError(f"{dump.path} holds pages above its highest page frame")


def _check_descriptors(dump: DiskdumpReader) -> None:
    data_start = dump.header.descriptor_offset + dump.page_count * DESCRIPTOR.size
    lowest, block_size = dump.size, dump.header.block_size
    for first, table in dump.descriptors():
        sizes = table["size"].astype(np.int64)
        lowest = min(lowest, int(table["offset"].min()))
        bad = (table["offset"] < data_start) | (sizes < 1) | (sizes > block_size)
        bad |= table["offset"] > dump.size - sizes
        if bad.any():
            number = first + int(np.flatnonzero(bad)[0])
            raise DumpFormatError(
                f"{dump.path}: the descriptor of page {number} of {dump.page_count} points outside the page data"
            )
        bad = ~np.isin(table["flags"], _CODECS) | ((table["flags"] == Codec.RAW) & (sizes != block_size))
        if bad.any():
            number = first + int(np.flatnonzero(bad)[0])
            raise DumpFormatError(
                f"{dump.path}: the descriptor of page {number} of {dump.page_count} names no way of packing"
            )

    # kdumpd and makedumpfile let the data follow the table at once, QEMU at the next block. A bit that was lost from
    # the bitmap makes the table seem shorter than it is.
    if dump.page_count and lowest % block_size and lowest > data_start and (lowest - data_start) % DESCRIPTOR.size == 0:
        extra = (lowest - data_start) // DESCRIPTOR.size
        raise DumpFormatError(f"{dump.path} has room for {extra} descriptors more than its bitmap has pages")


def _check_notes(dump: DiskdumpReader, memory: CrashedMemory | None) -> None:
    notes = dump.notes()
    if len(notes) < dump.header.note_size:
        raise DumpFormatError(f"{dump.path} ends inside its notes")
    if memory is not None and notes != memory.notes_block:
        raise DumpFormatError(f"{dump.path}: the notes are not those of {memory.path}")


def _check_pages(
    dump: DiskdumpReader,
    pages: Sequence[tuple[int, int | None, str]],
    memory: CrashedMemory | None,
    unreadable: Collection[int],
) -> None:
    """Unpacks `pages`, ascending page frames with the numbers of their descriptors and what they are, and compares them
    with `memory`. One that has no number is missing."""
    step = max(1, _BYTES_AT_ONCE // dump.header.block_size)
    for at in range(0, len(pages), step):
        some = pages[at : at + step]
        found = _found([pfn for pfn, _, _ in some if pfn not in unreadable], memory)
        for pfn, number, called in some:
            what = f"{dump.path}: {called}, pfn {pfn:#x},"
            page = None if number is None else dump.page_of_descriptor(number, what)
            if page is None:
                raise DumpFormatError(f"{what} is missing")
            if pfn in found and found[pfn] != page:
                raise DumpFormatError(f"{what} is not what {memory and memory.path} holds")


def _found(pfns: Sequence[int], memory: CrashedMemory | None) -> dict[int, bytes]:
    """Those of ascending `pfns` that `memory` gives."""
    if memory is None or not pfns:
        return {}
    rows = np.empty((len(pfns), memory.page_size), dtype=np.uint8)
    lost = set(ints(memory.read_pages(np.array(pfns, dtype=np.int64), rows)))
    return {pfn: rows[at].tobytes() for at, pfn in enumerate(pfns) if at not in lost}
