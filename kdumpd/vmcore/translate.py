# SPDX-License-Identifier: GPL-2.0-or-later
"""Kernel virtual addresses of the dead kernel: what every architecture's page tables have in common."""

from __future__ import annotations

import abc
from collections.abc import Iterator

import numpy as np

from kdumpd.errors import VmcoreError
from kdumpd.vmcore.arrays import NDArray, ints, unique
from kdumpd.vmcore.memory import PAGE_SHIFT, CrashedMemory

_KEPT = 1 << 20  # bytes of tables
# The direct map and the kernel's image are mapped in pieces of this size, or larger: where such a piece lies is kept.
_HUGE_SHIFT = 21
_HUGE_SIZE = 1 << _HUGE_SHIFT
_HUGE_KEPT = 1 << 12
_LAST_KEPT = 1 << 10


class PageTables(abc.ABC):
    """Virtual to physical by the dead kernel's own tables: pages of entries, `levels` deep, from `top_paddr` down.

    A page has `page_size` bytes. `phys_base` is what the dump's header says of them. Tables read once are kept, up to
    1 MiB of them, and where huge pages lie, and the last tables.
    """

    phys_base: int
    levels: int
    top_paddr: int

    def __init__(self, core: CrashedMemory, page_shift: int = PAGE_SHIFT) -> None:
        self._core = core
        self.page_shift = page_shift
        self.page_size = 1 << page_shift
        self._tables: dict[int, memoryview] = {}
        self._huge: dict[int, int] = {}
        self._last: dict[int, int] = {}
        self._last_shift = page_shift + page_shift - 3  # a table has a page's worth of entries of 8 bytes

    @abc.abstractmethod
    def _walk(self, vaddr: int) -> tuple[int, int] | None:
        """Physical address and the bytes that follow it in the same page; None where nothing is mapped.

        Raises VmcoreError when a table on the way cannot be read.
        """

    @abc.abstractmethod
    def _lower_tables(self, entries: NDArray[np.uint64], level: int) -> NDArray[np.uint64]:
        """Physical addresses of the tables that the kernel's entries of a table of `level` (1 is the last) lead to."""

    def _table(self, paddr: int) -> memoryview:
        table = self._tables.get(paddr)
        if table is None:
            table = memoryview(self._core.read(paddr, self.page_size)).cast("Q")
            if len(self._tables) >= _KEPT >> self.page_shift:
                del self._tables[next(iter(self._tables))]
            self._tables[paddr] = table
        return table

    def _begin(self, vaddr: int) -> tuple[int, int]:
        """Where a walk begins: a table and its level. That is the last one, where an earlier walk came to it."""
        table = self._last.get(vaddr >> self._last_shift)
        return (self.top_paddr, self.levels) if table is None else (table, 1)

    def _keep_last(self, vaddr: int, table: int) -> None:
        """A walk has come to the last `table`, and could read it."""
        if len(self._last) >= _LAST_KEPT:
            self._last.clear()
        self._last[vaddr >> self._last_shift] = table

    def levels_below_top(self, limit: int) -> Iterator[NDArray[np.int64]]:
        """Frames of the tables that map the kernel, one array for each level, the top first; at most `limit` frames.

        A table that cannot be read leads nowhere.
        """
        frames = np.array([self.top_paddr >> self.page_shift], dtype=np.int64)
        for level in range(self.levels, 0, -1):
            frames = frames[:limit]
            limit -= len(frames)
            yield frames
            if level == 1:
                return
            below: list[NDArray[np.int64]] = []
            for frame in ints(frames):
                try:
                    entries = np.frombuffer(self._core.read(frame << self.page_shift, self.page_size), dtype="<u8")
                except VmcoreError:
                    continue
                below.append(self._lower_tables(entries, level).astype(np.int64) >> self.page_shift)
            frames = unique(np.concatenate(below)) if below else frames[:0]

    def to_phys(self, vaddr: int) -> int | None:
        """The physical address behind `vaddr`, or None where nothing is mapped."""
        found = self._walk(vaddr)
        return None if found is None else found[0]

    def runs(self, vaddr: int, size: int) -> Iterator[tuple[int | None, int]]:
        """Pairs (physical address or None, bytes) that follow each other in [vaddr, vaddr + size)."""
        start: int | None = None
        length = 0
        end = vaddr + size
        while vaddr < end:
            paddr, room = self._step(vaddr)
            room = min(room, end - vaddr)
            follows = (start is None) == (paddr is None) and (start is None or paddr == start + length)
            if length and follows:
                length += room
            else:
                if length:
                    yield start, length
                start, length = paddr, room
            vaddr += room
        if length:
            yield start, length

    def _step(self, vaddr: int) -> tuple[int | None, int]:
        """Physical address, or None, and the bytes from there on for which this holds."""
        inside = vaddr & _HUGE_SIZE - 1
        base = self._huge.get(vaddr >> _HUGE_SHIFT)
        if base is not None:
            return base + inside, _HUGE_SIZE - inside
        try:
            found = self._walk(vaddr)
        except VmcoreError:
            found = None  # a page table that is not in the dump: the same as nothing mapped
        if found is None:
            return None, self.page_size - vaddr % self.page_size
        if found[1] > self.page_size:
            if len(self._huge) >= _HUGE_KEPT:
                self._huge.clear()
            self._huge[vaddr >> _HUGE_SHIFT] = found[0] - inside
        return found

    def read(self, vaddr: int, size: int) -> bytes:
        """`size` bytes at kernel virtual `vaddr`. Raises VmcoreError when any of them is not there."""
        parts: list[bytes] = []
        for paddr, length in self.runs(vaddr, size):
            if paddr is None:
                raise VmcoreError(f"virtual address {vaddr:#x} is not mapped in the dead kernel")
            parts.append(self._core.read(paddr, length))
        return b"".join(parts)

    def read_u64(self, vaddr: int) -> int:
        """An unsigned long at `vaddr`."""
        return int.from_bytes(self.read(vaddr, 8), "little")

    def read_u32(self, vaddr: int) -> int:
        """An unsigned int at `vaddr`."""
        return int.from_bytes(self.read(vaddr, 4), "little")
