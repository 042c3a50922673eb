# SPDX-License-Identifier: GPL-2.0-or-later
"""Page tables of arm64, built by hand after the Arm ARM (D8, "VMSAv8-64 translation table format descriptors")."""

from __future__ import annotations

import struct

import numpy as np
import numpy.typing as npt
import pytest

from kdumpd.errors import VmcoreError
from kdumpd.vmcore.arm64 import Arm64PageTables
from kdumpd.vmcore.memory import CrashedMemory, Segment
from kdumpd.vmcore.vmcoreinfo import Vmcoreinfo, parse_vmcoreinfo

TOP = 0x1000
VOFFSET = 0xFFFF800040000000


class Memory(CrashedMemory):
    """64 KiB from physical address 0 on, nothing above."""

    def __init__(self) -> None:
        self.data = bytearray(64 << 10)
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


@pytest.mark.parametrize(("bits", "levels"), [(39, 3), (48, 4), (52, 5)])
def test_a_page_through_all_levels(bits: int, levels: int) -> None:
    memory = Memory()
    vaddr = (1 << 64) - (1 << bits) + 0x12345_6789A & (1 << 64) - 1
    table = TOP
    for level in range(levels, 1, -1):
        index = (vaddr & (1 << bits) - 1) >> (12 + 9 * (level - 1)) & 511
        memory.entry(table, index, (table + 0x1000) | TABLE)
        table += 0x1000
    memory.entry(table, vaddr >> 12 & 511, 0x7000 | TABLE)
    memory.data[0x7000:0x8000] = bytes(range(256)) * 16
    tables = Arm64PageTables(memory, info(bits))
    assert (tables.levels, tables.phys_base) == (levels, 0x40000000)
    assert tables.to_phys(vaddr) == 0x7000 + vaddr % 4096
    assert tables.read(vaddr, 4) == memory.read(0x7000 + vaddr % 4096, 4)
    assert tables.to_phys(vaddr + 4096) is None
    # The same address in the lower half is a user's.
    assert tables.to_phys(vaddr & (1 << bits) - 1) is None


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
        ("PAGESIZE", "65536", "pages of 65536 bytes"),
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
