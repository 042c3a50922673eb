# SPDX-License-Identifier: GPL-2.0-or-later
"""A dead kernel small enough to build by hand: memory, page tables, memory map, log, and the ELF core of it all.

Physical memory is 16 MiB in sections of 4 MiB. The direct map uses huge pages, the memory map small ones that lie in
reverse order in physical memory, so that reading it in virtual order is a test. It is an x86_64 kernel, or one of arm64
with pages of 4, 16 or 64 KiB, in which the places of things and their names in VMCOREINFO are the same where they can.
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

PAGE = 4096
PAGES = 4096
DIRECT = 0xFFFF888000000000
VMEMMAP = 0xFFFFEA0000000000
KERNEL = 0xFFFFFFFF80000000
PHYS_BASE = 0x200000
VMALLOC = 0xFFFFC90000000000
PHYSICAL_BITS = 46
SECTION_BITS = 22
PER_SECTION = 1 << (SECTION_BITS - 12)
VA_BITS = 48
IMAGE_BYTES = 4 << 20  # mapped page by page on arm64
SIZE_OF_PAGE = 64

# struct page as 6.1 and 6.12 have it on x86_64.
OFFSETS = {"flags": 0, "_refcount": 52, "mapping": 24, "lru": 8, "_mapcount": 48, "private": 40, "compound_head": 8}
COMMON = {
    "NUMBER(PG_lru)": 4,
    "NUMBER(PG_private)": 13,
    "NUMBER(PG_swapcache)": 10,
    "NUMBER(PG_swapbacked)": 19,
    "NUMBER(PG_hwpoison)": 22,
    "NUMBER(PG_head_mask)": 1 << 16,
    "LENGTH(zone.free_area)": 11,
}
OLD = {  # as 6.1
    **COMMON,
    "NUMBER(PG_slab)": 9,
    "OFFSET(page.compound_dtor)": 16,
    "OFFSET(page.compound_order)": 17,
    "NUMBER(HUGETLB_PAGE_DTOR)": 2,
    "NUMBER(PAGE_BUDDY_MAPCOUNT_VALUE)": ~0x80,
    "NUMBER(PAGE_OFFLINE_MAPCOUNT_VALUE)": ~0x100,
}
NEW = {  # as 6.16
    **COMMON,
    "NUMBER(PAGE_SLAB_MAPCOUNT_VALUE)": (0xF5 << 24) - (1 << 32),
    "NUMBER(PAGE_HUGETLB_MAPCOUNT_VALUE)": (0xF4 << 24) - (1 << 32),
    "NUMBER(PAGE_BUDDY_MAPCOUNT_VALUE)": (0xF0 << 24) - (1 << 32),
    "NUMBER(PAGE_OFFLINE_MAPCOUNT_VALUE)": (0xF1 << 24) - (1 << 32),
    "NUMBER(PAGE_UNACCEPTED_MAPCOUNT_VALUE)": (0xF7 << 24) - (1 << 32),
}
MIDDLE = {  # as 6.6: hugetlb is a bit in the flags of the second page
    **{key: value for key, value in OLD.items() if "compound" not in key and "DTOR" not in key},
    "NUMBER(PG_hugetlb)": 8,
}
FOLIO = {  # as 6.3: order and destructor are members of struct folio
    **{key: value for key, value in OLD.items() if "compound" not in key},
    "OFFSET(folio._folio_dtor)": SIZE_OF_PAGE + 16,
    "OFFSET(folio._folio_order)": SIZE_OF_PAGE + 17,
}


class FakeKernel:
    """Build it, change `pages` (the struct pages) and `extra` (VMCOREINFO lines), then `write` the core."""

    def __init__(
        self, keys: dict[str, int], *, levels: int = 4, flags_in_section: int = 0x3, arm64_shift: int | None = None
    ) -> None:
        """With pages of 2^`arm64_shift` bytes a kernel of arm64."""
        self.memory = bytearray(PAGES * PAGE)
        self.keys = dict(keys)
        self.is_arm64 = arm64_shift is not None
        self.page_shift = arm64_shift or 12
        self.page_size = 1 << self.page_shift
        self.count = PAGES * PAGE // self.page_size
        self.bits_per_level = self.page_shift - 3
        self.levels = -(-(VA_BITS - self.page_shift) // self.bits_per_level) if self.is_arm64 else levels
        self.extra: list[str] = []
        self.missing: set[str] = set()
        self.note_at: int | None = None
        self._next = 0x400000
        self.top = self._page()
        self._tables: dict[tuple[int, int], int] = {}
        for at in range(0, PAGES * PAGE, 1 << (self.page_shift + self.bits_per_level)):
            self._map(DIRECT + at, at, level=2)
        if self.is_arm64:
            for at in range(0, IMAGE_BYTES, self.page_size):
                self._map(KERNEL + at, PHYS_BASE + at, level=1)
        else:
            self._map(KERNEL, PHYS_BASE, level=2)
        self.memmap_frames = [self._page() for _ in range(-(-self.count * SIZE_OF_PAGE // self.page_size))][::-1]
        for index, frame in enumerate(self.memmap_frames):
            self._map(VMEMMAP + index * self.page_size, frame, level=1)
        self.pages = np.zeros((self.count, SIZE_OF_PAGE // 8), dtype=np.uint64)
        self.pages.view(np.uint32)[:, OFFSETS["_mapcount"] // 4] = 0xFFFFFFFF
        self.root = self._page()
        self.sections = self._page()
        self._u64(self.root, DIRECT + self.sections)
        for number in range(PAGES * PAGE >> SECTION_BITS):
            self._u64(self.sections + number * 16, VMEMMAP | flags_in_section)

    def without_vmemmap(self) -> None:
        """Each section's struct pages lie somewhere else, the higher section lower (SPARSEMEM without vmemmap)."""
        frames = PER_SECTION * SIZE_OF_PAGE // PAGE
        for number in range(PAGES // PER_SECTION):
            base = VMALLOC + (100 - number) * (1 << 30)
            for index, frame in enumerate(self.memmap_frames[number * frames : (number + 1) * frames]):
                self._map(base + index * PAGE, frame, level=1)
            self._u64(self.sections + number * 16, base - number * PER_SECTION * SIZE_OF_PAGE | 0x3)

    def with_static_sections(self) -> None:
        """The root is the array of struct mem_section itself (SPARSEMEM_STATIC)."""
        self.missing |= {"SYMBOL(mem_section)", "LENGTH(mem_section)"}
        self.extra += [
            f"SYMBOL(mem_section)={DIRECT + self.sections:x}",
            f"LENGTH(mem_section)={1 << (PHYSICAL_BITS - SECTION_BITS)}",
        ]

    def with_flat_map(self) -> None:
        """One array of struct pages, to which mem_map points (FLATMEM)."""
        self.missing |= {"SYMBOL(mem_section)", "LENGTH(mem_section)", "SIZE(mem_section)"}
        pointer = self._page()
        self._u64(pointer, VMEMMAP)
        self.extra.append(f"SYMBOL(mem_map)={DIRECT + pointer:x}")

    def _page(self) -> int:
        self._next += self.page_size
        return self._next - self.page_size

    def _u64(self, paddr: int, value: int) -> None:
        struct.pack_into("<Q", self.memory, paddr, value & (1 << 64) - 1)

    def _map(self, vaddr: int, paddr: int, *, level: int) -> None:
        if self.is_arm64:
            vaddr &= (1 << VA_BITS) - 1
            to_table, huge, page = 0x3, 0x701, 0x703  # Arm ARM D8: table, block, page; access flag, shareability
        else:
            to_table, huge, page = 0x63, 0xE3 | 1 << 63, 0x63 | 1 << 63
        mask = (1 << self.bits_per_level) - 1
        table = self.top
        for depth in range(self.levels, level, -1):
            index = vaddr >> (self.page_shift + self.bits_per_level * (depth - 1))
            if (depth, index) not in self._tables:
                self._tables[depth, index] = self._page()
                self._u64(table + (index & mask) * 8, self._tables[depth, index] | to_table)
            table = self._tables[depth, index]
        index = vaddr >> (self.page_shift + self.bits_per_level * (level - 1))
        self._u64(table + (index & mask) * 8, paddr | (huge if level == 2 else page))

    def _machine_lines(self) -> dict[str, str]:
        if self.is_arm64:
            return {
                "SYMBOL(swapper_pg_dir)": f"{KERNEL + self.top - PHYS_BASE:x}",
                "NUMBER(kimage_voffset)": f"0x{KERNEL - PHYS_BASE:x}",
                "NUMBER(VA_BITS)": str(VA_BITS),
                "NUMBER(TCR_EL1_T1SZ)": f"0x{64 - VA_BITS:x}",
                "NUMBER(PHYS_OFFSET)": "0x0",
            }
        return {
            "SYMBOL(init_top_pgt)": f"{KERNEL + self.top - PHYS_BASE:x}",
            "NUMBER(phys_base)": str(PHYS_BASE),
            "NUMBER(pgtable_l5_enabled)": str(int(self.levels == 5)),
        }

    def vmcoreinfo(self) -> bytes:
        """The text of the note."""
        lines = {
            "OSRELEASE": "6.1.0-fake",
            "PAGESIZE": str(self.page_size),
            "SYMBOL(mem_section)": f"{DIRECT + self.root:x}",
            "LENGTH(mem_section)": "2048",
            "SIZE(mem_section)": "16",
            "OFFSET(mem_section.section_mem_map)": "0",
            "NUMBER(SECTION_SIZE_BITS)": str(SECTION_BITS),
            "NUMBER(MAX_PHYSMEM_BITS)": str(PHYSICAL_BITS),
            "SIZE(page)": str(SIZE_OF_PAGE),
            **self._machine_lines(),
            **{f"OFFSET(page.{name})": str(value) for name, value in OFFSETS.items()},
            **{key: str(value) for key, value in self.keys.items()},
            "CRASHTIME": "1700000000",
        }
        text = "".join(f"{key}={value}\n" for key, value in lines.items() if key not in self.missing)
        return (text + "".join(line + "\n" for line in self.extra)).encode()

    def note(self) -> bytes:
        """VMCOREINFO as an ELF note."""
        info = self.vmcoreinfo()
        head = struct.pack("<III", 11, len(info), 0) + b"VMCOREINFO\0\0"
        return head + info.ljust(-(-len(info) // 4) * 4, b"\0")

    def hide_note(self, *, uts_at: int) -> None:
        """Keeps the note in memory, where a running kernel has it, with the kernel's name at physical `uts_at`."""
        if "SYMBOL(init_uts_ns)" not in self.missing:
            self.extra.append(f"SYMBOL(init_uts_ns)={KERNEL + uts_at - PHYS_BASE:x}")
        for index, text in enumerate(
            (b"Linux", b"fake", b"6.1.0-fake", b"#1", b"aarch64" if self.is_arm64 else b"x86_64")
        ):
            self.memory[uts_at + 65 * index : uts_at + 65 * index + len(text)] = text
        note = self.note()
        self.note_at = self._page()
        self.memory[self.note_at : self.note_at + len(note)] = note

    def write(self, path: Path, ranges: list[tuple[int, int]] | None = None) -> Path:
        """The core with the page frames of `ranges` (all of them by default), in file order."""
        size = self.page_size
        data = self.pages.tobytes()
        for index, frame in enumerate(self.memmap_frames):
            part = data[index * size : (index + 1) * size]
            self.memory[frame : frame + len(part)] = part
        notes = struct.pack("<III", 5, 336, 1) + b"CORE\0\0\0\0" + bytes(336)
        if self.note_at is None:
            notes += self.note()
        loads = [(start * size, end * size) for start, end in ranges or [(0, self.count)]]
        notes_at = 64 + 56 * (1 + len(loads))
        offset = -(-(notes_at + len(notes)) // size) * size
        ident = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
        out = struct.pack(
            "<16sHHIQQQIHHHHHH", ident, 4, 183 if self.is_arm64 else 62, 1, 0, 64, 0, 0, 64, 56, 1 + len(loads), 0, 0, 0
        )
        out += struct.pack("<IIQQQQQQ", 4, 0, notes_at, 0, 0, len(notes), len(notes), 4)
        bodies = []
        for start, end in loads:
            out += struct.pack("<IIQQQQQQ", 1, 7, offset, DIRECT + start, start, end - start, end - start, 0)
            bodies.append(self.memory[start:end])
            offset += end - start
        out += notes
        path.write_bytes(out.ljust(-(-len(out) // size) * size, b"\0") + b"".join(bodies))
        return path
