# SPDX-License-Identifier: GPL-2.0-or-later
"""Virtual to physical on x86_64: the dead kernel's own page tables, 4 or 5 levels (Intel SDM vol. 3, ch. 4).

Every address is walked, the direct map too: with KASLR its base is nobody's constant.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from kdumpd.errors import VmcoreError
from kdumpd.vmcore.elfcore import PAGE_SIZE, ElfCore
from kdumpd.vmcore.vmcoreinfo import Vmcoreinfo

KERNEL_MAP = 0xFFFFFFFF80000000
_PRESENT = 1 << 0
_HUGE = 1 << 7
_ADDRESS = 0x000FFFFFFFFFF000
_ENTRIES = 512
_CACHE = 256
_TABLE = struct.Struct("<512Q")


class PageTables:
    """Walks from init_top_pgt. Tables read once are kept, up to 1 MiB of them."""

    def __init__(self, core: ElfCore, info: Vmcoreinfo) -> None:
        """Raises VmcoreError when the top of the page tables cannot be found."""
        self._core = core
        # init_level4_pgt became init_top_pgt in 4.13 (65ade2f872b4).
        top = info.symbol("init_top_pgt") or info.symbol("init_level4_pgt") or info.symbol("swapper_pg_dir")
        if top is None:
            raise VmcoreError("VMCOREINFO names no page table (init_top_pgt, swapper_pg_dir)")
        phys_base = info.number("phys_base")
        if phys_base is None:
            phys_base = _phys_base_of(core)
        self.phys_base = phys_base
        # AMD SME/SEV set an encryption bit in the entries that is no part of the address.
        self._mask = _ADDRESS & ~(info.number("sme_mask") or 0)
        self.levels = 5 if info.number("pgtable_l5_enabled") else 4
        self.top_paddr = (top - KERNEL_MAP + phys_base) & _ADDRESS
        self._tables: dict[int, tuple[int, ...]] = {}
        self._table(self.top_paddr)

    def to_phys(self, vaddr: int) -> int | None:
        """The physical address behind `vaddr`, or None where nothing is mapped."""
        found = self._walk(vaddr)
        return None if found is None else found[0]

    def _walk(self, vaddr: int) -> tuple[int, int] | None:
        """Physical address and the bytes that follow it in the same page (4 KiB, 2 MiB or 1 GiB)."""
        table = self.top_paddr
        for level in range(self.levels, 0, -1):
            shift = 12 + 9 * (level - 1)
            entry = self._table(table)[vaddr >> shift & _ENTRIES - 1]
            if not entry & _PRESENT:
                return None
            if level == 1 or (entry & _HUGE and level <= 3):
                size = 1 << shift
                # In a huge entry the bits below the page size are flags (PAT is bit 12), not address.
                base = entry & self._mask & ~(size - 1)
                inside = vaddr & size - 1
                return base + inside, size - inside
            table = entry & self._mask
        return None

    def _table(self, paddr: int) -> tuple[int, ...]:
        table = self._tables.get(paddr)
        if table is None:
            table = _TABLE.unpack(self._core.read(paddr, PAGE_SIZE))
            if len(self._tables) >= _CACHE:
                del self._tables[next(iter(self._tables))]
            self._tables[paddr] = table
        return table

    def runs(self, vaddr: int, size: int) -> Iterator[tuple[int | None, int]]:
        """Pairs (physical address or None, bytes) that follow each other in [vaddr, vaddr + size)."""
        start: int | None = None
        length = 0
        end = vaddr + size
        while vaddr < end:
            try:
                found = self._walk(vaddr)
            except VmcoreError:
                found = None  # a page table that is not in the dump: the same as nothing mapped
            paddr, room = found if found else (None, PAGE_SIZE - vaddr % PAGE_SIZE)
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


def _phys_base_of(core: ElfCore) -> int:
    """Where the kernel image was loaded, from the PT_LOAD that maps its text."""
    for segment in core.segments:
        if segment.vaddr >= KERNEL_MAP:
            return segment.paddr - (segment.vaddr - KERNEL_MAP)
    raise VmcoreError("VMCOREINFO has no phys_base and no segment maps the kernel's text")
