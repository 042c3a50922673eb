# SPDX-License-Identifier: GPL-2.0-or-later
"""Virtual to physical on arm64, with pages of 4, 16 or 64 KiB: the dead kernel's own page tables (Arm ARM, D8
"VMSAv8-64").

Every address is walked, the linear map too. Its arithmetic needs PAGE_OFFSET and PHYS_OFFSET, which mean something
else for kernels before 5.4, and for those built for 52 bits that run on a cpu of 48; the tables are right for all.
"""

from __future__ import annotations

import numpy as np

from kdumpd.errors import VmcoreError
from kdumpd.vmcore.arrays import NDArray
from kdumpd.vmcore.memory import PAGE_SHIFT, CrashedMemory
from kdumpd.vmcore.translate import PageTables
from kdumpd.vmcore.vmcoreinfo import Vmcoreinfo

_VALID = 1 << 0
_TABLE_OR_PAGE = 1 << 1
_ENTRY_SHIFT = 3
_PAGE_SHIFTS = (12, 14, 16)
_LARGEST_SHIFT = 16
_ADDRESS_BITS, _LPA2_ADDRESS_BITS = 48, 50
# Where the address goes on in an entry, the mask there and where it belongs: with FEAT_LPA2 (52 bits of virtual
# addresses and pages of 4 or 16 KiB), and with FEAT_LPA (pages of 64 KiB; zero on cpus without it).
_LPA2_HIGH = (8, 0x3, 50)
_LPA_HIGH = (12, 0xF, 48)
_IMAGE_ADDRESS = (1 << 52) - (1 << 12)
_LPA2_VA_BITS = 52
_MIN_VA_BITS = 36


class Arm64PageTables(PageTables):
    """Walks from swapper_pg_dir."""

    def __init__(self, core: CrashedMemory, info: Vmcoreinfo, page_shift: int = PAGE_SHIFT) -> None:
        """Raises VmcoreError when the top of the page tables cannot be found."""
        super().__init__(core, page_shift)
        top = info.symbol("swapper_pg_dir")
        if top is None:
            raise VmcoreError("VMCOREINFO names no page table (swapper_pg_dir)")
        self.va_bits = _va_bits(info)
        self._bits_per_level = page_shift - _ENTRY_SHIFT
        self.levels = self._levels_of(self.va_bits)
        self._index_bits = self.va_bits
        built_for = info.number("VA_BITS") or 0
        if self.va_bits < built_for <= _LPA2_VA_BITS and self._levels_of(built_for) == self.levels:
            # With pages of 64 KiB 48 bits need as many levels as 52. A kernel built for 52 that runs on a cpu of 48
            # keeps its large top table and uses the end of it (linux: arch/arm64/include/asm/assembler.h,
            # offset_ttbr1). Else it drops a level, and the top table is that of the bits in use.
            self._index_bits = built_for
        low, high = page_shift, _ADDRESS_BITS
        self._high: tuple[int, int, int] | None = None
        if page_shift == _LARGEST_SHIFT:
            self._high = _LPA_HIGH
        elif self.va_bits >= _LPA2_VA_BITS:
            high, self._high = _LPA2_ADDRESS_BITS, _LPA2_HIGH
        self._address_mask = (1 << high) - (1 << low)
        self._top = top
        self.phys_base = (info.number("PHYS_OFFSET") or 0) & (1 << 64) - 1
        self.top_paddr = _image_to_phys(core, info, top)
        self._table(self.top_paddr)

    def _levels_of(self, va_bits: int) -> int:
        return -(-(va_bits - self.page_shift) // self._bits_per_level)

    def lead_to_themselves(self) -> bool:
        """Whether the tables map their own top where the kernel's image says that it lies: tables that are read with
        another size of pages do not."""
        try:
            return self.to_phys(self._top) == self.top_paddr
        except VmcoreError:
            return False

    def _walk(self, vaddr: int) -> tuple[int, int] | None:
        if vaddr >> self.va_bits != (1 << (64 - self.va_bits)) - 1:
            return None  # TTBR1 translates only the top of the address space
        table, first = self._begin(vaddr)
        for level in range(first, 0, -1):
            shift = self.page_shift + self._bits_per_level * (level - 1)
            # The top table may have fewer entries: of pages of 4 KiB and 52 bits 16, of 16 KiB and 48 bits 2.
            index = (vaddr & (1 << self._index_bits) - 1) >> shift & (1 << self._bits_per_level) - 1
            entry = self._table(table)[index]
            if level == 1 < first:
                self._keep_last(vaddr, table)
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
        address = entry & self._address_mask
        if self._high is not None:
            at, mask, to = self._high
            address |= (entry >> at & mask) << to
        return address

    def _lower_tables(self, entries: NDArray[np.uint64], level: int) -> NDArray[np.uint64]:
        held = entries[entries & (_VALID | _TABLE_OR_PAGE) == _VALID | _TABLE_OR_PAGE]
        found: NDArray[np.uint64] = held & np.uint64(self._address_mask)
        if self._high is not None:
            at, mask, to = map(np.uint64, self._high)
            found |= (held >> at & mask) << to
        return found


def find_page_shift(core: CrashedMemory, info: Vmcoreinfo, doubts: list[str]) -> int | None:
    """The size of the dead kernel's pages as a power of 2: what VMCOREINFO says (PAGESIZE), unless the page tables show
    that it is another. None where neither tells; sentences on what was not believed are added to `doubts`."""
    told = info.texts.get("PAGESIZE")
    claimed = next((shift for shift in _PAGE_SHIFTS if told == str(1 << shift)), None)
    if claimed is not None and _leads_to_itself(core, info, claimed):
        return claimed
    shown = [shift for shift in _PAGE_SHIFTS if shift != claimed and _leads_to_itself(core, info, shift)]
    says = "VMCOREINFO has no PAGESIZE" if told is None else f"VMCOREINFO says that PAGESIZE is {told[:40]}"
    if len(shown) != 1:
        if claimed is None:
            doubts.append(f"{says}, and the page tables do not tell how large pages are")
        return claimed
    doubts.append(f"{says}; the page tables are of pages of {1 << shown[0]} bytes")
    return shown[0]


def _leads_to_itself(core: CrashedMemory, info: Vmcoreinfo, shift: int) -> bool:
    try:
        return Arm64PageTables(core, info, shift).lead_to_themselves()
    except VmcoreError:
        return False


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
        return vaddr - offset & _IMAGE_ADDRESS
    for segment in core.segments:
        if segment.vaddr <= vaddr < segment.vaddr + segment.memsz:
            return vaddr - segment.vaddr + segment.paddr
    raise VmcoreError("VMCOREINFO has no kimage_voffset and no segment maps the kernel's image")
