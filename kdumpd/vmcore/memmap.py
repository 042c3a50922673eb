# SPDX-License-Identifier: GPL-2.0-or-later
"""Where the dead kernel keeps its struct pages: the memory map, found without debug information.

SPARSEMEM with and without vmemmap, and FLATMEM. The map is handed out in blocks of at most one section; a block
whose struct pages cannot be read is left out, and the pages it describes are then kept unseen.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np

from kdumpd.errors import VmcoreError
from kdumpd.vmcore.arrays import NDArray, ints
from kdumpd.vmcore.memory import CrashedMemory
from kdumpd.vmcore.translate import PageTables
from kdumpd.vmcore.vmcoreinfo import Vmcoreinfo

# The low bits of section_mem_map are flags. There are 6 of them since 6.15 (SECTION_IS_VMEMMAP_PREINIT); the bit
# was zero before, because a map is aligned to more than that.
_SECTION_FLAGS = 0x3F
_SECTION_PRESENT = 1
_FLAT_BLOCK_PAGES = 1 << 15
_MAX_SECTION_BITS = 40
_MAX_SIZE_OF_PAGE = 512


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Struct pages of the pfns from `start_pfn` on, at kernel virtual `vaddr`."""

    start_pfn: int
    count: int
    vaddr: int


class MemoryMap:
    """The pieces of the memory map and their bytes. Raises VmcoreError where there is no way to find it."""

    def __init__(self, core: CrashedMemory, info: Vmcoreinfo, tables: PageTables) -> None:
        self._core = core
        self._tables = tables
        size = info.size("page")
        if size is None or not 32 <= size <= _MAX_SIZE_OF_PAGE or size % 8:
            raise VmcoreError(f"VMCOREINFO gives no usable SIZE(page): {size}")
        self.size_of_page = size
        self.unreadable_pages = 0
        if info.symbol("mem_section") is None and info.symbol("mem_map") is None:
            raise VmcoreError("VMCOREINFO names neither mem_section nor mem_map")
        self._info = info
        if next(self.pieces(), None) is None:
            raise VmcoreError("the memory map is empty: no section of memory is present")
        self.unreadable_pages = 0

    def pieces(self) -> Iterator[Piece]:
        """The pieces, ascending; looked up anew each time, as there are as many as the memory is large."""
        if self._info.symbol("mem_section") is not None:
            return self._sparse_pieces(self._info)
        return self._flat_pieces(self._info)

    def _flat_pieces(self, info: Vmcoreinfo) -> Iterator[Piece]:
        pointer = info.symbol("mem_map")
        assert pointer is not None
        base = self._tables.read_u64(pointer)
        for start in range(0, self._core.max_pfn, _FLAT_BLOCK_PAGES):
            count = min(_FLAT_BLOCK_PAGES, self._core.max_pfn - start)
            yield Piece(start_pfn=start, count=count, vaddr=base + start * self.size_of_page)

    def _sparse_pieces(self, info: Vmcoreinfo) -> Iterator[Piece]:
        root = info.symbol("mem_section")
        entry_size = info.size("mem_section")
        map_at = info.offset("mem_section.section_mem_map")
        bits = info.number("SECTION_SIZE_BITS")
        if bits is None:
            # Exported from 5.13 on (4f5aecdff25f), and by the stable kernels of that time. arm64 has 27 from 5.12 on.
            bits = 30 if self._core.machine == "aarch64" else 27
        if (
            root is None
            or entry_size is None
            or map_at is None
            or not 8 <= entry_size <= self._tables.page_size
            or entry_size % 8
            or map_at % 8
            or not 0 <= map_at <= entry_size - 8
        ):
            raise VmcoreError("VMCOREINFO describes no usable struct mem_section")
        page_shift = self._tables.page_shift
        if not page_shift < bits <= _MAX_SECTION_BITS:
            raise VmcoreError(f"VMCOREINFO claims sections of 2^{bits} bytes")
        per_section = 1 << (bits - page_shift)
        sections = -(-self._core.max_pfn // per_section)
        per_root = self._tables.page_size // entry_size
        for index, array in enumerate(self._roots(info, root, sections, per_root, entry_size)):
            if array == 0:
                continue
            first = index * per_root
            count = min(per_root, sections - first)
            try:
                raw = self._tables.read(array, count * entry_size)
            except VmcoreError:
                self.unreadable_pages += count * per_section
                continue
            coded = ints(np.frombuffer(raw, dtype="<u8").reshape(count, entry_size // 8)[:, map_at // 8])
            for number, value in enumerate(coded, start=first):
                if value & _SECTION_PRESENT:
                    start_pfn = number * per_section
                    # The stored address is that of pfn 0, so that a pfn can be used as the index.
                    vaddr = (value & ~_SECTION_FLAGS) + start_pfn * self.size_of_page
                    # A damaged section size must not send anybody through struct pages of memory that is not there.
                    held = min(per_section, self._core.max_pfn - start_pfn)
                    yield Piece(start_pfn=start_pfn, count=held, vaddr=vaddr & (1 << 64) - 1)

    def _roots(self, info: Vmcoreinfo, root: int, sections: int, per_root: int, entry_size: int) -> list[int]:
        """Addresses of the arrays of struct mem_section, 0 where there is none."""
        length = info.length("mem_section")
        physical_bits = info.number("MAX_PHYSMEM_BITS")
        bits = info.number("SECTION_SIZE_BITS")
        static = False
        if length is not None and physical_bits is not None and bits is not None and bits < physical_bits < 64:
            # SPARSEMEM_EXTREME has an array of pointers to pages of entries; plain SPARSEMEM one flat array.
            static = length == 1 << (physical_bits - bits)
        needed = -(-sections // per_root)
        if static:
            return [root + index * per_root * entry_size for index in range(needed)]
        if length is not None and length > 0:
            needed = min(needed, length)
        raw = self._tables.read(root, needed * 8)
        return [int(value) for value in np.frombuffer(raw, dtype="<u8")]

    def blocks(self) -> Iterator[tuple[Piece, NDArray[np.uint8]]]:
        """Pieces with the bytes of their struct pages, shape (count * size_of_page,), in ascending order.

        Physically contiguous parts are views of the mapped file, not copies. Where a part of a piece is not
        mapped (a hole in a vmemmap) the piece comes in several parts without it.
        """
        for piece in self.pieces():
            yield from self._readable(piece)

    def _readable(self, piece: Piece) -> Iterator[tuple[Piece, NDArray[np.uint8]]]:
        size = self.size_of_page
        chunks: list[memoryview] = []
        begin = at = 0  # in bytes from the start of the piece

        def finish(end: int) -> Iterator[tuple[Piece, NDArray[np.uint8]]]:
            # A struct page may straddle the edge of a hole: only whole ones count.
            first = -(-begin // size)
            last = end // size
            if last > first:
                joined = chunks[0] if len(chunks) == 1 else memoryview(b"".join(chunks))
                inside = first * size - begin
                data = np.frombuffer(joined, dtype=np.uint8)[inside : inside + (last - first) * size]
                yield (
                    Piece(
                        start_pfn=piece.start_pfn + first,
                        count=last - first,
                        vaddr=piece.vaddr + first * size,
                    ),
                    data,
                )
            chunks.clear()

        for paddr, length in self._tables.runs(piece.vaddr, piece.count * size):
            view: memoryview | None = None
            if paddr is not None:
                try:
                    view = self._core.view(paddr, length)
                except VmcoreError:
                    view = None
            if view is None:
                yield from finish(at)
                self.unreadable_pages += length // size
                begin = at + length
            else:
                chunks.append(view)
            at += length
        yield from finish(at)
