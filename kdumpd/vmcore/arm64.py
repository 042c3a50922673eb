# SPDX-License-Identifier: GPL-2.0-or-later
"""Virtual to physical on arm64 with pages of 4 KiB: the dead kernel's own page tables (Arm ARM, D8 "VMSAv8-64").

Every address is walked, the linear map too. Its arithmetic needs PAGE_OFFSET and PHYS_OFFSET, which mean something
else for kernels before 5.4, and for those built for 52 bits that run on a cpu of 48; the tables are right for all.
"""

from __future__ import annotations

import numpy as np

from kdumpd.errors import VmcoreError
from kdumpd.vmcore.arrays import NDArray
from kdumpd.vmcore.memory import PAGE_SHIFT, PAGE_SIZE, CrashedMemory
from kdumpd.vmcore.translate import PageTables
from kdumpd.vmcore.vmcoreinfo import Vmcoreinfo

_VALID = 1 << 0
_TABLE_OR_PAGE = 1 << 1
_ADDRESS_48 = 0x0000FFFFFFFFF000
# With FEAT_LPA2 (52 bits and pages of 4 KiB) the address goes on in the entry's bits 49:48 and 9:8.
_ADDRESS_50 = 0x0003FFFFFFFFF000
_HIGH_BITS_AT, _HIGH_BITS, _HIGH_BITS_TO = 8, 0x3, 50
_BITS_PER_LEVEL = PAGE_SHIFT - 3
_LPA2_VA_BITS = 52
_MIN_VA_BITS = 36


class Arm64PageTables(PageTables):
    """Walks from swapper_pg_dir."""

    def __init__(self, core: CrashedMemory, info: Vmcoreinfo) -> None:
        """Raises VmcoreError when the top of the page tables cannot be found, or pages are not of 4 KiB."""
        super().__init__(core)
        page_size = info.texts.get("PAGESIZE", str(PAGE_SIZE))
        if page_size != str(PAGE_SIZE):
            raise VmcoreError(f"the dead kernel has pages of {page_size} bytes; only {PAGE_SIZE} are understood")
        top = info.symbol("swapper_pg_dir")
        if top is None:
            raise VmcoreError("VMCOREINFO names no page table (swapper_pg_dir)")
        self.va_bits = _va_bits(info)
        self.levels = -(-(self.va_bits - PAGE_SHIFT) // _BITS_PER_LEVEL)
        self.phys_base = (info.number("PHYS_OFFSET") or 0) & (1 << 64) - 1
        self.top_paddr = _image_to_phys(core, info, top)
        self._table(self.top_paddr)

    def _walk(self, vaddr: int) -> tuple[int, int] | None:
        if vaddr >> self.va_bits != (1 << (64 - self.va_bits)) - 1:
            return None  # TTBR1 translates only the top of the address space
        table = self.top_paddr
        for level in range(self.levels, 0, -1):
            shift = PAGE_SHIFT + _BITS_PER_LEVEL * (level - 1)
            # The top table of 52 bits has 16 entries, one of 48 bits all 512.
            index = (vaddr & (1 << self.va_bits) - 1) >> shift & (1 << _BITS_PER_LEVEL) - 1
            entry = self._table(table)[index]
            if not entry & _VALID:
                return None
            address = self._address(entry)
            if level == 1 or not entry & _TABLE_OR_PAGE:
                if level == 1 and not entry & _TABLE_OR_PAGE:
                    return None  # reserved, and a fault, at the last level
                size = 1 << shift
                inside = vaddr & size - 1
                return (address & ~(size - 1)) + inside, size - inside
            table = address
        return None

    def _address(self, entry: int) -> int:
        if self.va_bits < _LPA2_VA_BITS:
            return entry & _ADDRESS_48
        return entry & _ADDRESS_50 | (entry >> _HIGH_BITS_AT & _HIGH_BITS) << _HIGH_BITS_TO

    def _lower_tables(self, entries: NDArray[np.uint64], level: int) -> NDArray[np.uint64]:
        held = entries[entries & (_VALID | _TABLE_OR_PAGE) == _VALID | _TABLE_OR_PAGE]
        found: NDArray[np.uint64] = held & np.uint64(_ADDRESS_48)
        if self.va_bits >= _LPA2_VA_BITS:
            high = (held >> np.uint64(_HIGH_BITS_AT) & np.uint64(_HIGH_BITS)) << np.uint64(_HIGH_BITS_TO)
            found = held & np.uint64(_ADDRESS_50) | high
        return found


def _va_bits(info: Vmcoreinfo) -> int:
    """How many bits the kernel's addresses really have: VA_BITS is what it was built for, not what the cpu could do."""
    t1sz = info.number("TCR_EL1_T1SZ")  # exported since 5.9 (bbdbc11804ff)
    bits = 64 - t1sz if t1sz is not None else info.number("VA_BITS")
    if bits is None or not _MIN_VA_BITS <= bits <= _LPA2_VA_BITS:
        raise VmcoreError(f"VMCOREINFO gives no usable size of virtual addresses (TCR_EL1_T1SZ, VA_BITS): {bits}")
    return bits


def _image_to_phys(core: CrashedMemory, info: Vmcoreinfo, vaddr: int) -> int:
    """The physical address of something in the kernel's image."""
    offset = info.number("kimage_voffset")
    if offset is not None:
        return vaddr - offset & _ADDRESS_48
    for segment in core.segments:
        if segment.vaddr <= vaddr < segment.vaddr + segment.memsz:
            return vaddr - segment.vaddr + segment.paddr
    raise VmcoreError("VMCOREINFO has no kimage_voffset and no segment maps the kernel's image")
