# SPDX-License-Identifier: GPL-2.0-or-later
"""Core files as the kernel writes them, and as nobody should."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from elftools.elf.elffile import ELFFile
from fake_kernel import DIRECT, KERNEL, OLD, PAGE, PAGES, PHYS_BASE, VMEMMAP, FakeKernel
from hypothesis import given, settings
from hypothesis import strategies as st

from kdumpd.errors import VmcoreError
from kdumpd.vmcore import elfcore
from kdumpd.vmcore.elfcore import ElfCore
from kdumpd.vmcore.machines import page_tables
from kdumpd.vmcore.memory import Segment
from kdumpd.vmcore.vmcoreinfo import parse_vmcoreinfo
from kdumpd.vmcore.x86_64 import X86PageTables


@pytest.fixture
def kernel() -> FakeKernel:
    made = FakeKernel(OLD)
    for pfn in range(PAGES):
        struct.pack_into("<Q", made.memory, pfn * PAGE, 0) if pfn < 512 else None
    return made


def test_segments_and_notes_are_those_of_pyelftools(kernel: FakeKernel, tmp_path: Path) -> None:
    path = kernel.write(tmp_path / "core", [(0, 100), (200, 300)])
    with path.open("rb") as file, ElfCore(path) as core:
        reference = ELFFile(file)
        loads = [each.header for each in reference.iter_segments() if each.header.p_type == "PT_LOAD"]
        assert [(each.paddr, each.offset, each.filesz, each.vaddr) for each in core.segments] == [
            (each.p_paddr, each.p_offset, each.p_filesz, each.p_vaddr) for each in loads
        ]
        note = core.vmcoreinfo_note()
        assert note is not None
        assert note.description == kernel.vmcoreinfo()
        assert core.notes_block[note.offset : note.offset + len(note.description)] == note.description
        assert core.nr_cpus() == 1
        assert core.max_pfn == 300


def test_reading_follows_the_segments(kernel: FakeKernel, tmp_path: Path) -> None:
    for pfn in (5, 99, 200):
        kernel.memory[pfn * PAGE : (pfn + 1) * PAGE] = bytes([pfn]) * PAGE
    with ElfCore(kernel.write(tmp_path / "core", [(0, 100), (200, 300)])) as core:
        assert core.read(5 * PAGE + 7, 3) == b"\x05\x05\x05"
        assert bytes(core.view(99 * PAGE, PAGE)) == b"\x63" * PAGE
        with pytest.raises(VmcoreError, match="is not in"):
            core.read(99 * PAGE, PAGE + 1)
        out = np.full((4, PAGE), 0xAA, dtype=np.uint8)
        bad = core.read_pages(np.array([5, 99, 100, 200], dtype=np.int64), out)
        assert bad.tolist() == [2]
        assert [int(page[0]) for page in out] == [5, 99, 0, 200]
        assert all((page == page[0]).all() for page in out)


def test_without_mmap_the_same_is_read(kernel: FakeKernel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = kernel.write(tmp_path / "core", [(0, 2000), (2100, PAGES)])
    pfns = np.arange(1000, 2200, dtype=np.int64)
    results = []
    for works in (True, False):
        if not works:

            def refuse(*_: object, **__: object) -> None:
                raise OSError(19, "No such device")  # what the kernel answers for /proc/vmcore of s390

            monkeypatch.setattr(elfcore.mmap, "mmap", refuse)
        with ElfCore(path) as core:
            out = np.empty((len(pfns), PAGE), dtype=np.uint8)
            bad = core.read_pages(pfns, out)
            results.append((bad.tolist(), out.tobytes()))
    assert results[0] == results[1]
    assert results[0][0] == list(range(1000, 1100))


def test_overlapping_and_unaligned_segments() -> None:
    text = Segment(vaddr=KERNEL, paddr=0x3000, offset=0x1000, filesz=0x2000, memsz=0x2000)
    odd = Segment(vaddr=DIRECT, paddr=0x1800, offset=0x3800, filesz=0x3000, memsz=0x3000)
    found = elfcore._extents((text, odd), 0x10000)
    assert [(each.start, each.end, each.offset) for each in found] == [(1, 5, 0x3000)]
    found = elfcore._extents((text, odd), 0x5000)
    assert [(each.start, each.end, each.offset) for each in found] == [(1, 3, 0x3000), (3, 5, 0x1000)]


@pytest.mark.parametrize("levels", [4, 5])
def test_page_tables(levels: int, tmp_path: Path) -> None:
    kernel = FakeKernel(OLD, levels=levels)
    with ElfCore(kernel.write(tmp_path / "core")) as core:
        tables = X86PageTables(core, parse_vmcoreinfo(kernel.vmcoreinfo()))
        assert tables.levels == levels
        assert tables.to_phys(DIRECT + 0x345678) == 0x345678
        assert tables.to_phys(KERNEL + 0x1234) == PHYS_BASE + 0x1234
        assert tables.to_phys(DIRECT + PAGES * PAGE) is None
        assert list(tables.runs(DIRECT + PAGE, 4 << 20)) == [(PAGE, 4 << 20)]
        assert list(tables.runs(DIRECT + PAGES * PAGE - PAGE, 3 * PAGE)) == [
            (PAGES * PAGE - PAGE, PAGE),
            (None, 2 * PAGE),
        ]
        with pytest.raises(VmcoreError, match="not mapped"):
            tables.read(DIRECT - 1, 1)


@pytest.mark.parametrize("shift", [None, 12, 14, 16])
def test_a_walk_that_begins_at_the_last_table_ends_where_others_do(shift: int | None, tmp_path: Path) -> None:
    """Pages that are mapped one by one and pages that are not, below one last table and the next."""
    kernel = FakeKernel(OLD, arm64_shift=shift)
    info = parse_vmcoreinfo(kernel.vmcoreinfo())
    each = kernel.page_size
    in_a_table = each // 8
    addresses = [VMEMMAP + index * each for index in (*range(-2, 70), *range(in_a_table - 2, in_a_table + 3))]
    with ElfCore(kernel.write(tmp_path / "core")) as core:
        core.use_pages(kernel.page_shift)
        walked = page_tables(core, info)
        expected = [page_tables(core, info).to_phys(vaddr + 8) for vaddr in addresses]
        assert None in expected
        assert len(set(expected)) > 1 + kernel.count * 64 // each // 2
        for order in (1, -1, 1):
            assert [walked.to_phys(vaddr + 8) for vaddr in addresses[::order]] == expected[::order]


def test_phys_base_is_found_without_vmcoreinfo(tmp_path: Path) -> None:
    kernel = FakeKernel(OLD)
    kernel.missing = {"NUMBER(phys_base)"}
    path = kernel.write(tmp_path / "core")
    raw = bytearray(path.read_bytes())
    struct.pack_into("<Q", raw, 64 + 56 + 16, KERNEL - PHYS_BASE)  # p_vaddr: the text's alias of address 0
    path.write_bytes(raw)
    with ElfCore(path) as core, pytest.raises(VmcoreError, match="no segment maps"):
        X86PageTables(core, parse_vmcoreinfo(kernel.vmcoreinfo()))
    struct.pack_into("<QQ", raw, 64 + 56 + 16, KERNEL, PHYS_BASE)
    path.write_bytes(raw)
    with ElfCore(path) as core:
        assert X86PageTables(core, parse_vmcoreinfo(kernel.vmcoreinfo())).phys_base == PHYS_BASE


def test_more_segments_than_the_header_can_count(tmp_path: Path) -> None:
    """elf(5), PN_XNUM: the count is in sh_info of section 0."""
    path = FakeKernel(OLD).write(tmp_path / "core")
    raw = bytearray(path.read_bytes())
    struct.pack_into("<H", raw, 56, 0xFFFF)
    struct.pack_into("<Q", raw, 40, len(raw))
    raw += bytes(44) + struct.pack("<I", 2) + bytes(16)
    path.write_bytes(raw)
    with ElfCore(path) as core:
        assert len(core.segments) == 1


DAMAGED = pytest.mark.parametrize(
    ("at", "value", "message"),
    [
        (0, b"\x7fELG", "not an ELF file"),
        (4, b"\x01", "not a 64-bit"),
        (16, b"\x02\x00", "core file"),
        (18, b"\xb7\x01", "machine"),
        (54, b"\x20\x00", "program headers of 32 bytes"),
        (56, b"\x00\x00", "holds no memory"),
        (32, b"\xff" * 7 + b"\x7f", "holds no memory"),
    ],
)


@DAMAGED
def test_no_core_file(at: int, value: bytes, message: str, tmp_path: Path) -> None:
    path = FakeKernel(OLD).write(tmp_path / "core")
    raw = bytearray(path.read_bytes())
    raw[at : at + len(value)] = value
    path.write_bytes(raw.replace(b"VMCOREINFO\0", b"VMCORE----\0", 1))
    with pytest.raises(VmcoreError, match=message):
        ElfCore(path)


@DAMAGED
def test_a_damaged_header_costs_no_memory(at: int, value: bytes, message: str, tmp_path: Path) -> None:
    """A core is known by its VMCOREINFO note, too; that it was guessed is told."""
    path = FakeKernel(OLD).write(tmp_path / "core", [(0, 100), (200, 4096)])
    raw = bytearray(path.read_bytes())
    raw[at : at + len(value)] = value
    path.write_bytes(raw)
    with ElfCore(path) as core:
        assert (core.machine, len(core.segments)) == ("x86_64", 2)
        assert message in core.doubts[0]
        assert core.read(250 << 12, 4096) == raw[-(4096 - 250 << 12) :][:4096]


def test_a_segment_whose_type_is_damaged_is_still_memory(tmp_path: Path) -> None:
    path = FakeKernel(OLD).write(tmp_path / "core", [(0, 100), (200, 4096)])
    raw = bytearray(path.read_bytes())
    raw[64 + 56 + 3] = 0x77
    path.write_bytes(raw)
    with ElfCore(path) as core:
        assert len(core.segments) == 2
        assert "unknown type 0x77000001" in core.doubts[0]


def test_missing_and_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(VmcoreError, match="cannot be opened: No such file"):
        ElfCore(tmp_path / "nothing")
    with pytest.raises(VmcoreError, match="it is a directory"):
        ElfCore(tmp_path)


def test_vmcoreinfo_takes_odd_lines() -> None:
    info = parse_vmcoreinfo(
        b"SIZE(page)=64\nSYMBOL(x)=ff\nnonsense\nNUMBER(y)=zz\nNUMBER(z)=-129\n\nNUMBER(h)=0x10\0junk"
    )
    assert info.size("page") == 64
    assert info.symbol("x") == 255
    assert info.number("y") is None
    assert info.number("z") == -129
    assert info.number("h") == 16
    assert info.bad_lines == ("nonsense", "NUMBER(y)=zz")


@settings(max_examples=300)
@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 20), st.integers(1, 20)), min_size=1, max_size=8))
def test_holes_are_what_the_machine_had_and_the_file_has_not(loads: list[tuple[int, int, int]]) -> None:
    segments = tuple(
        Segment(vaddr=0, paddr=start * PAGE, offset=0, filesz=held * PAGE, memsz=(held + more) * PAGE)
        for start, held, more in loads
    )
    extents = elfcore._extents(segments, 1 << 40)
    held = {pfn for extent in extents for pfn in range(extent.start, extent.end)}
    had = {pfn for start, size, more in loads for pfn in range(start, start + size + more)}
    holes = elfcore._holes(segments, extents)
    assert sorted(pfn for start, end in holes for pfn in range(start, end)) == sorted(had - held)
