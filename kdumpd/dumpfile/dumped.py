# SPDX-License-Identifier: GPL-2.0-or-later
"""A kdump-compressed dump, plain or flattened, by makedumpfile, QEMU or kdumpd, as the memory that it holds.

So a dump can be filtered again, or read for its log. Pages that it left out stay left out.
"""

from __future__ import annotations

import itertools
import struct
from pathlib import Path

import numpy as np

from kdumpd.dumpfile.codecs import Unpacker
from kdumpd.dumpfile.diskdump import DESCRIPTOR, DESCRIPTORS, HEADER_SIZE, Status, read_headers
from kdumpd.dumpfile.ranks import Ranks
from kdumpd.dumpfile.stored import Stored, decoded, open_plain
from kdumpd.errors import DumpFormatError, VmcoreError
from kdumpd.vmcore.arrays import NDArray, ints
from kdumpd.vmcore.memory import CrashedMemory, Extent
from kdumpd.vmcore.vmcoreinfo import machine_of

_MAX_NOTES = 64 << 20
_MAX_EXTENTS = 1 << 20
_STEP = 1 << 16  # bytes of bitmap looked at in one go
_SPAN = 4 << 20  # bytes of page data read in one go
_CACHED = 1 << 20  # bytes of pages
_VMCOREINFO = b"VMCOREINFO\0\0"

Bytes = NDArray[np.uint8]


class DumpedMemory(CrashedMemory):
    """An open dump. Use it as a context manager; not safe for use from several threads at once."""

    def __init__(self, path: Path) -> None:
        """Raises VmcoreError when `path` cannot be opened or is no such dump."""
        self.path = path
        try:
            plain = open_plain(path)
        except DumpFormatError as error:
            raise VmcoreError(error.sentence, hint=error.hint) from error
        self.descriptors = (plain.fileno(),)
        self._file: Stored = plain
        try:
            self._file = decoded(plain)
            self._open()
        except DumpFormatError as error:
            self._file.close()
            raise VmcoreError(error.sentence, hint=error.hint) from error
        except BaseException:
            self._file.close()
            raise

    def _open(self) -> None:
        name = str(self.path)
        if self._file.read_at(0, HEADER_SIZE).startswith(b"\x7fELF"):
            raise DumpFormatError(f"{name} is a flattened ELF core", hint=f"kdumpd-collect -R OUT <{name} comes first")
        self.header = header = read_headers(self._file.read_at, name)
        self.page_shift = header.block_size.bit_length() - 1
        if header.present_offset + 2 * header.bitmap_bytes > self._file.size:
            raise DumpFormatError(f"{name} ends inside its bitmaps")
        self.phys_base = header.phys_base
        self.segments = ()
        self.notes_block = self._notes()
        # QEMU writes "Unknown" into its headers.
        self.machine = machine_of(self.notes_block) or header.utsname.machine
        # One bit for each page frame, rounded up: what is above max_mapnr is padding.
        self._bitmap_size = min(header.bitmap_bytes, -(-header.max_mapnr // 8))
        self._ranks = Ranks(self._bitmap_size, self._dumped)
        self._first_rank = 0
        doubts: list[str] = []
        if header.split:
            self._first_rank = int(self._ranks.find(np.array([header.start_pfn], dtype=np.int64))[0][0])
            doubts.append(
                f"{name} is a part of a split dump, with the pages from {header.start_pfn:#x} to {header.end_pfn:#x}; "
                "kdumpd-collect --reassemble makes one dump of all parts"
            )
        self.incomplete = bool(header.status & Status.INCOMPLETE) or not self._file.complete
        if self.incomplete:
            doubts.append(f"{name} is incomplete; pages that were lost are left out")
        self.extents = self._extents(doubts)
        self.doubts = tuple(doubts)
        self._unpacker = Unpacker(header.block_size)
        self._pages: dict[int, bytes] = {}

    def use_pages(self, shift: int) -> None:
        """Page frames stay as large as the blocks of the dump."""

    def close(self) -> None:
        """Closing twice is harmless."""
        self._file.close()

    def _notes(self) -> bytes:
        header = self.header
        notes = self._file.read_at(header.note_offset, min(header.note_size, _MAX_NOTES)) if header.note_size else b""
        if b"VMCOREINFO" not in notes and header.vmcoreinfo_size:
            # Before version 4 the text came without its note.
            text = self._file.read_at(header.vmcoreinfo_offset, min(header.vmcoreinfo_size, _MAX_NOTES))
            padding = bytes(-len(text) % 4)
            notes += struct.pack("<III", 11, len(text), 0) + _VMCOREINFO + text + padding
        return notes

    def nr_cpus(self) -> int:
        """As the notes have it, else as the header says: QEMU's and old dumps have no notes of the usual kind."""
        return super().nr_cpus() or max(0, self.header.nr_cpus)

    # Which pages

    def _bits(self, offset: int, size: int) -> Bytes:
        raw = self._file.read_at(offset, size)
        if len(raw) < size:
            raise DumpFormatError(f"{self.path} ends inside its bitmaps")
        return np.frombuffer(raw, dtype=np.uint8)

    def _dumped(self, at: int, size: int) -> Bytes:
        return self._bits(self.header.dumped_offset + at, size)

    def _extents(self, doubts: list[str]) -> tuple[Extent, ...]:
        """The runs of pages that the machine had."""
        edges: list[int] = []
        last = 0
        for at in range(0, self._bitmap_size, _STEP):
            raw = self._bits(self.header.present_offset + at, min(_STEP, self._bitmap_size - at))
            bits = np.unpackbits(raw, bitorder="little").view(np.int8)
            edges.extend(ints(np.flatnonzero(np.diff(bits, prepend=np.int8(last))) + at * 8))
            last = int(bits[-1])
            if len(edges) > 2 * _MAX_EXTENTS:
                doubts.append("the bitmap of present pages makes no sense and is not believed")
                return (Extent(start=0, end=self.header.max_mapnr, offset=0),)
        if last:
            edges.append(self._bitmap_size * 8)
        pairs = zip(edges[::2], edges[1::2], strict=True)
        limit = self.header.max_mapnr
        return tuple(Extent(start=start, end=min(end, limit), offset=0) for start, end in pairs if start < limit)

    def leave_out(self, kept: Bytes) -> None:
        """Clears what the dump left out, and what it lost."""
        for at in range(0, len(kept), _STEP):
            here = kept[at : at + _STEP]
            size = min(len(here), max(0, self._bitmap_size - at))
            here[:size] &= self._dumped(at, size)
            here[size:] = 0
            if here.any() and (self.doubts or self.header.split):
                pfns = np.flatnonzero(np.unpackbits(here, bitorder="little")).astype(np.int64) + at * 8
                lost = pfns[self._descriptors(pfns)["offset"] <= 0] - at * 8
                np.bitwise_and.at(here, lost >> 3, ~np.left_shift(1, lost & 7).astype(np.uint8))

    # Pages

    def _descriptors(self, pfns: NDArray[np.int64]) -> NDArray[np.void]:
        """The descriptors of ascending `pfns`, zeros for those that have none."""
        ranks, there = self._ranks.find(pfns)
        if self.header.split:
            there &= (pfns >= self.header.start_pfn) & (pfns < self.header.end_pfn)
        found = np.zeros(len(pfns), dtype=DESCRIPTORS)
        where = np.flatnonzero(there)
        ranks = ranks[where] - self._first_rank
        for run in np.split(np.arange(len(where)), np.flatnonzero(np.diff(ranks) != 1) + 1):
            if len(run):
                at = self.header.descriptor_offset + int(ranks[run[0]]) * DESCRIPTOR.size
                raw = self._file.read_at(at, len(run) * DESCRIPTOR.size)
                table = np.frombuffer(raw[: len(raw) // DESCRIPTOR.size * DESCRIPTOR.size], dtype=DESCRIPTORS)
                found[where[run[: len(table)]]] = table
        return found

    def read_pages(self, pfns: NDArray[np.int64], out: Bytes) -> NDArray[np.int64]:
        """Copies the pages of ascending `pfns` into `out`, shape (len(pfns), page_size).

        Returns the positions in `pfns` of pages that could not be read; these are zero in `out`.
        """
        table = self._descriptors(pfns)
        offsets, sizes = table["offset"], table["size"].astype(np.int64)
        good = (offsets > 0) & (sizes > 0) & (sizes <= self.page_size) & (offsets <= self._file.size - sizes)
        bad = ints(np.flatnonzero(~good))
        out[~good] = 0
        # In the order in which they lie in the file; neighbours are read together.
        order = np.flatnonzero(good)
        order = order[np.argsort(offsets[order], kind="stable")]
        for group in _groups(offsets[order], sizes[order], self.page_size):
            members = order[group]
            begin = int(offsets[members[0]])
            data = memoryview(self._file.read_at(begin, int((offsets[members] + sizes[members]).max()) - begin))
            for index, at, size, flags in zip(
                ints(members), ints(offsets[members] - begin), ints(sizes[members]), ints(table["flags"][members]),
                strict=True,
            ):  # fmt: skip
                try:
                    page = self._unpacker.page(bytes(data[at : at + size]), flags, f"pfn {int(pfns[index]):#x}")
                    out[index] = np.frombuffer(page, dtype=np.uint8)
                except DumpFormatError:
                    out[index] = 0
                    bad.append(index)
        return np.array(sorted(bad), dtype=np.int64)

    def read(self, paddr: int, size: int) -> bytes:
        """`size` bytes at physical `paddr`. Raises VmcoreError when any of them is not in the dump."""
        first, last = paddr >> self.page_shift, paddr + max(size, 1) - 1 >> self.page_shift
        inside = paddr - (first << self.page_shift)
        if first == last:
            return self._page(first)[inside : inside + size]
        pages = np.empty((last - first + 1, self.page_size), dtype=np.uint8)
        bad = self.read_pages(np.arange(first, last + 1, dtype=np.int64), pages)
        if len(bad):
            raise self._missing(first + int(bad[0]))
        return pages.tobytes()[inside : inside + size]

    def view(self, paddr: int, size: int) -> memoryview:
        """As `read`: every page has to be unpacked."""
        return memoryview(self.read(paddr, size))

    def _page(self, pfn: int) -> bytes:
        page = self._pages.pop(pfn, None)
        if page is None:
            out = np.empty((1, self.page_size), dtype=np.uint8)
            if len(self.read_pages(np.array([pfn], dtype=np.int64), out)):
                raise self._missing(pfn)
            page = out.tobytes()
            if len(self._pages) >= _CACHED >> self.page_shift:
                del self._pages[next(iter(self._pages))]
        self._pages[pfn] = page
        return page

    def _missing(self, pfn: int) -> VmcoreError:
        return VmcoreError(f"physical address {pfn << self.page_shift:#x} is not in {self.path}")


def _groups(offsets: NDArray[np.int64], sizes: NDArray[np.int64], nearness: int) -> list[slice]:
    """Pieces of ascending `offsets` that lie so near to each other that one read is cheaper than several."""
    if not len(offsets):
        return []
    near = offsets[1:] - (offsets[:-1] + sizes[:-1]) <= nearness
    cuts = [0, *ints(np.flatnonzero(~near) + 1), len(offsets)]
    groups: list[slice] = []
    for first, last in itertools.pairwise(cuts):
        begin = first
        while begin < last:
            end = begin + max(1, int(np.searchsorted(offsets[begin:last], offsets[begin] + _SPAN)))
            groups.append(slice(begin, end))
            begin = end
    return groups
