# SPDX-License-Identifier: GPL-2.0-or-later
"""Page tables of arm64, built by hand after the Arm ARM (D8, "VMSAv8-64 translation table format descriptors")."""

from __future__ import annotations

import struct

import numpy as np
import numpy.typing as npt
import pytest

from kdumpd.errors import VmcoreError
from kdumpd.vmcore.arm64 import Arm64PageTables, find_page_shift
from kdumpd.vmcore.memory import CrashedMemory, Segment
from kdumpd.vmcore.vmcoreinfo import Vmcoreinfo, parse_vmcoreinfo

TOP = 0x1000
VOFFSET = 0xFFFF800040000000


class Memory(CrashedMemory):
    """64 KiB from physical address 0 on, or more, nothing above."""

    def __init__(self, size: int = 64 << 10) -> None:
        self.data = bytearray(size)
        self.machine = "aarch64"
        self.segments: tuple[Segment, ...] = ()

    def close(self) -> None: ...

    def read(self, paddr: int, size: int) -> bytes:
        if paddr + size > len(self.data):
            raise VmcoreError(f"{paddr:#x} is not there")
        return bytes(self.data[paddr : paddr + size])

    def view(self, paddr: int, size: int) -> memoryview:
        return memoryview(self.read(paddr, size))

    def read_pages(self, pfns: npt.NDArray[np.int64], out: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
        raise NotImplementedError

    def entry(self, table: int, index: int, value: int) -> None:
        struct.pack_into("<Q", self.data, table + index * 8, value)


def info(bits: int, **more: str) -> Vmcoreinfo:
    lines = {
        "PAGESIZE": "4096",
        "SYMBOL(swapper_pg_dir)": f"{VOFFSET + TOP:x}",
        "NUMBER(kimage_voffset)": f"0x{VOFFSET:x}",
        "NUMBER(VA_BITS)": "52",
        "NUMBER(TCR_EL1_T1SZ)": f"0x{64 - bits:x}",
        "NUMBER(PHYS_OFFSET)": "0x40000000",
        **more,
    }
    return parse_vmcoreinfo("".join(f"{key}={value}\n" for key, value in lines.items() if value).encode())


# Bits of a valid descriptor that are no address: attributes, and the access flag.
ATTRIBUTES = 0x0060000000000400
TABLE = ATTRIBUTES | 3


# (page shift, bits of addresses, levels): arch/arm64/Kconfig, PGTABLE_LEVELS
GRANULES = [
    (12, 39, 3), (12, 48, 4), (12, 52, 5), (14, 36, 2), (14, 47, 3), (14, 48, 4), (14, 52, 4), (16, 42, 2), (16, 48, 3),
    (16, 52, 3),
]  # fmt: skip


@pytest.mark.parametrize(("shift", "bits", "levels"), GRANULES)
def test_a_page_through_all_levels(shift: int, bits: int, levels: int) -> None:
    size, each = 1 << shift, shift - 3
    memory = Memory(8 * size)
    vaddr = (1 << 64) - (1 << bits) + 0x1_2345_6789 & (1 << 64) - 1
    top = table = size
    for level in range(levels, 1, -1):
        index = (vaddr & (1 << bits) - 1) >> (shift + each * (level - 1)) & (1 << each) - 1
        memory.entry(table, index, (table + size) | TABLE)
        table += size
    memory.entry(table, vaddr >> shift & (1 << each) - 1, 7 * size | TABLE)
    memory.data[7 * size :] = bytes(range(256)) * (size // 256)
    lines = info(bits, **{"SYMBOL(swapper_pg_dir)": f"{VOFFSET + top:x}", "NUMBER(VA_BITS)": str(bits)})
    tables = Arm64PageTables(memory, lines, shift)
    assert (tables.levels, tables.phys_base) == (levels, 0x40000000)
    assert tables.to_phys(vaddr) == 7 * size + vaddr % size
    assert tables.read(vaddr, 4) == memory.read(7 * size + vaddr % size, 4)
    assert tables.to_phys(vaddr + size) is None
    # The same address in the lower half is a user's.
    assert tables.to_phys(vaddr & (1 << bits) - 1) is None
    assert [frames.tolist() for frames in tables.levels_below_top(100)] == [[1 + number] for number in range(levels)]


@pytest.mark.parametrize(("shift", "bits", "block"), [(14, 47, 32 << 20), (16, 42, 512 << 20), (16, 48, 512 << 20)])
def test_blocks_of_larger_pages(shift: int, bits: int, block: int) -> None:
    size = 1 << shift
    memory = Memory(8 * size)
    levels = Arm64PageTables(memory, info(bits, **{"NUMBER(VA_BITS)": str(bits)}), shift).levels
    for number in range(levels - 2):
        memory.entry((1 + number) * size, 0, (2 + number) * size | TABLE)
    memory.entry((levels - 1) * size, 3, 0x80000000 | ATTRIBUTES | 1)
    lines = info(bits, **{"SYMBOL(swapper_pg_dir)": f"{VOFFSET + size:x}", "NUMBER(VA_BITS)": str(bits)})
    tables = Arm64PageTables(memory, lines, shift)
    base = (1 << 64) - (1 << bits) + 3 * block
    assert list(tables.runs(base + 0x1000, block)) == [(0x80001000, block - 0x1000), (None, 0x1000)]
    assert tables.to_phys(base + block - 1) == 0x80000000 + block - 1


def test_a_kernel_for_52_bits_with_64k_pages_on_a_cpu_of_48() -> None:
    """Its top table stays that of 52 bits, with 1024 entries of which the last 64 are used."""
    size = 1 << 16
    memory = Memory(8 * size)
    lines = info(48, **{"SYMBOL(swapper_pg_dir)": f"{VOFFSET + size:x}", "NUMBER(VA_BITS)": "52"})
    memory.entry(size, 1024 - 64, 2 * size | TABLE)
    memory.entry(2 * size, 0, 3 * size | TABLE)
    memory.entry(3 * size, 5, 7 * size | TABLE)
    assert Arm64PageTables(memory, lines, 16).to_phys((1 << 64) - (1 << 48) + 5 * size) == 7 * size


def test_blocks() -> None:
    memory = Memory()
    base = (1 << 64) - (1 << 48)
    memory.entry(TOP, 0, 0x2000 | TABLE)
    memory.entry(0x2000, 0, 0x80000000 | ATTRIBUTES | 1)  # 1 GiB
    memory.entry(0x2000, 1, 0x3000 | TABLE)
    memory.entry(0x3000, 5, 0x40200000 | ATTRIBUTES | 1)  # 2 MiB
    tables = Arm64PageTables(memory, info(48))
    assert list(tables.runs(base + 0x1000, 0x1000)) == [(0x80001000, 0x1000)]
    assert tables.to_phys(base + (1 << 30) + 5 * (2 << 20) + 0x12345) == 0x40200000 + 0x12345


def test_52_bits_spread_over_the_entry() -> None:
    memory = Memory()
    base = (1 << 64) - (1 << 52)
    for number in range(4):
        memory.entry(TOP + number * 0x1000, 0, TOP + (number + 1) * 0x1000 | TABLE)
    memory.entry(TOP + 0x4000, 0, 0x0003_0000_5000_0000 | 0x300 | TABLE)
    assert Arm64PageTables(memory, info(52)).to_phys(base) == 0x000F_0000_5000_0000
    # With 48 bits the same places hold the shareability.
    memory = Memory()
    for number in range(3):
        memory.entry(TOP + number * 0x1000, 0, TOP + (number + 1) * 0x1000 | TABLE)
    memory.entry(TOP + 0x3000, 0, 0x5000_0000 | 0x300 | TABLE)
    assert Arm64PageTables(memory, info(48)).to_phys((1 << 64) - (1 << 48)) == 0x5000_0000


@pytest.mark.parametrize(
    ("shift", "bits", "entry", "address"),
    [
        (14, 47, 0x8000_C000 | 0x300, 0x8000_C000),  # shareability
        (14, 52, 0x0002_0000_8000_C000 | 0x200, 0x000A_0000_8000_C000),  # FEAT_LPA2
        (16, 48, 0x8001_0000 | 0x5300, 0x0005_0000_8001_0000),  # FEAT_LPA
        (16, 52, 0x8001_0000 | 0xF300, 0x000F_0000_8001_0000),
    ],
)
def test_high_bits_of_larger_pages(shift: int, bits: int, entry: int, address: int) -> None:
    size = 1 << shift
    memory = Memory(8 * size)
    lines = info(bits, **{"SYMBOL(swapper_pg_dir)": f"{VOFFSET + size:x}", "NUMBER(VA_BITS)": str(bits)})
    levels = Arm64PageTables(memory, lines, shift).levels
    for number in range(1, levels):
        memory.entry(number * size, 0, (number + 1) * size | TABLE)
    memory.entry(levels * size, 0, entry | ATTRIBUTES | 3)
    assert Arm64PageTables(memory, lines, shift).to_phys((1 << 64) - (1 << bits)) == address


def test_a_reserved_entry_maps_nothing() -> None:
    memory = Memory()
    for number in range(3):
        memory.entry(TOP + number * 0x1000, 0, TOP + (number + 1) * 0x1000 | TABLE)
    memory.entry(TOP + 0x3000, 0, 0x7000 | ATTRIBUTES | 1)
    assert Arm64PageTables(memory, info(48)).to_phys((1 << 64) - (1 << 48)) is None


def test_a_table_that_points_to_itself_ends() -> None:
    memory = Memory()
    memory.entry(TOP, 0, TOP | TABLE)
    assert Arm64PageTables(memory, info(52)).to_phys((1 << 64) - (1 << 52)) == TOP


def test_without_an_image_offset_the_segments_tell() -> None:
    memory = Memory()
    lines = info(48, **{"NUMBER(kimage_voffset)": ""})
    with pytest.raises(VmcoreError, match="kimage_voffset"):
        Arm64PageTables(memory, lines)
    memory.segments = (Segment(vaddr=VOFFSET, paddr=0, offset=0, filesz=0x8000, memsz=0x8000),)
    assert Arm64PageTables(memory, lines).top_paddr == TOP


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("SYMBOL(swapper_pg_dir)", "", "names no page table"),
        ("NUMBER(TCR_EL1_T1SZ)", "0", "size of virtual addresses"),
        ("NUMBER(TCR_EL1_T1SZ)", "63", "size of virtual addresses"),
        ("SYMBOL(swapper_pg_dir)", f"{VOFFSET + (1 << 40):x}", "is not there"),
    ],
)
def test_what_cannot_be_understood_is_said(key: str, value: str, text: str) -> None:
    with pytest.raises(VmcoreError, match=text):
        Arm64PageTables(Memory(), info(48, **{key: value}))


def test_kernels_before_5_9_tell_only_what_they_were_built_for() -> None:
    lines = info(48, **{"NUMBER(TCR_EL1_T1SZ)": "", "NUMBER(VA_BITS)": "48"})
    assert Arm64PageTables(Memory(), lines).levels == 4


def test_all_tables_of_the_kernel_level_by_level() -> None:
    memory = Memory()
    memory.entry(TOP, 0, 0x2000 | TABLE)
    memory.entry(TOP, 511, 0x3000 | TABLE)
    memory.entry(0x2000, 7, 0x40000000 | ATTRIBUTES | 1)  # a block leads nowhere
    memory.entry(0x3000, 1, 0x4000 | TABLE)
    memory.entry(0x4000, 1, 0x5000 | TABLE)
    memory.entry(0x4000, 2, 0x70000000 | TABLE)
    levels = [frames.tolist() for frames in Arm64PageTables(memory, info(48)).levels_below_top(100)]
    assert levels == [[1], [2, 3], [4], [5, 0x70000]]
    assert [len(frames) for frames in Arm64PageTables(memory, info(48)).levels_below_top(3)] == [1, 2, 0, 0]


def mapped(shift: int) -> Memory:
    """Tables of 48 bits that map their own top."""
    size, each = 1 << shift, shift - 3
    memory = Memory(8 << 16)
    table, vaddr = 1 << 16, VOFFSET + (1 << 16)
    for level in range(-(-(48 - shift) // each), 0, -1):
        index = (vaddr & (1 << 48) - 1) >> (shift + each * (level - 1)) & (1 << each) - 1
        memory.entry(table, index, (1 << 16 if level == 1 else table + size) | TABLE)
        table += size
    return memory


@pytest.mark.parametrize("shift", [12, 14, 16])
@pytest.mark.parametrize("told", ["4096", "16384", "65536", "8192", "many", ""])
def test_the_tables_show_how_large_pages_are(shift: int, told: str) -> None:
    lines = info(
        48, **{"PAGESIZE": told, "NUMBER(VA_BITS)": "48", "SYMBOL(swapper_pg_dir)": f"{VOFFSET + (1 << 16):x}"}
    )
    doubts: list[str] = []
    assert find_page_shift(mapped(shift), lines, doubts) == shift
    if told == str(1 << shift):
        assert doubts == []
    else:
        says = f"VMCOREINFO says that PAGESIZE is {told}" if told else "VMCOREINFO has no PAGESIZE"
        assert doubts == [f"{says}; the page tables are of pages of {1 << shift} bytes"]


@pytest.mark.parametrize(("told", "found", "said"), [("16384", 14, 0), ("", None, 1), ("1000", None, 1)])
def test_without_tables_vmcoreinfo_is_believed(told: str, found: int | None, said: int) -> None:
    doubts: list[str] = []
    assert find_page_shift(Memory(), info(48, PAGESIZE=told), doubts) == found
    assert len(doubts) == said
