# SPDX-License-Identifier: GPL-2.0-or-later
"""Virtual to physical on x86_64: the dead kernel's own page tables, 4 or 5 levels (Intel SDM vol. 3, ch. 4).

Every address is walked, the direct map too: with KASLR its base is nobody's constant.
"""

from __future__ import annotations

import numpy as np

from kdumpd.errors import VmcoreError
from kdumpd.vmcore.arrays import NDArray
from kdumpd.vmcore.memory import CrashedMemory
from kdumpd.vmcore.translate import PageTables
from kdumpd.vmcore.vmcoreinfo import Vmcoreinfo

KERNEL_MAP = 0xFFFFFFFF80000000
_PRESENT = 1 << 0
_HUGE = 1 << 7
_ADDRESS = 0x000FFFFFFFFFF000
_ENTRIES = 512


class X86PageTables(PageTables):
    """Walks from init_top_pgt."""

    def __init__(self, core: CrashedMemory, info: Vmcoreinfo) -> None:
        """Raises VmcoreError when the top of the page tables cannot be found."""
        super().__init__(core)
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
        self._table(self.top_paddr)

    def _walk(self, vaddr: int) -> tuple[int, int] | None:
        table, first = self._begin(vaddr)
        for level in range(first, 0, -1):
            shift = 12 + 9 * (level - 1)
            entry = self._table(table)[vaddr >> shift & _ENTRIES - 1]
            if level == 1 < first:
                self._keep_last(vaddr, table)
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

    def _lower_tables(self, entries: NDArray[np.uint64], level: int) -> NDArray[np.uint64]:
        if level == self.levels:
            entries = entries[_ENTRIES // 2 :]  # the kernel's half
        held: NDArray[np.uint64] = entries[(entries & _PRESENT != 0) & ((entries & _HUGE == 0) | (level > 3))]
        held &= np.uint64(self._mask)
        return held


def _phys_base_of(core: CrashedMemory) -> int:
    """Where the kernel image was loaded, from the PT_LOAD that maps its text."""
    for segment in core.segments:
        if segment.vaddr >= KERNEL_MAP:
            return segment.paddr - (segment.vaddr - KERNEL_MAP)
    raise VmcoreError("VMCOREINFO has no phys_base and no segment maps the kernel's text")
