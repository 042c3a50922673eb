# SPDX-License-Identifier: GPL-2.0-or-later
"""ELF core files: holes, zero pages, more segments than e_phnum can count, and what a cut leaves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from elftools.elf.elffile import ELFFile
from hypothesis import given, settings
from hypothesis import strategies as st

from kdumpd.dumpfile.check import verify_dump
from kdumpd.dumpfile.diskdump import BLOCK_SIZE, Codec
from kdumpd.dumpfile.elfdump import ElfWriter
from kdumpd.dumpfile.elflayout import Runs, pieces
from kdumpd.dumpfile.packing import PackedPages
from kdumpd.dumpfile.sink import Sink
from kdumpd.errors import DumpFormatError, UnsupportedError
from kdumpd.targets.files import OutputFile
from kdumpd.vmcore.elfcore import ElfCore
from kdumpd.vmcore.memory import Segment

KEPT = st.sets(st.integers(0, 399), min_size=1)
SPANS = st.lists(st.tuples(st.integers(0, 390), st.integers(1, 100)), min_size=1, max_size=4)


def bitmap(pfns: set[int], size: int = 400) -> np.ndarray:
    bits = np.zeros(-(-size // 8) * 8, dtype=np.uint8)
    bits[sorted(pfns)] = 1
    return np.packbits(bits, bitorder="little")


def segment(start: int, count: int, vaddr: int = 1 << 47) -> Segment:
    size = count * BLOCK_SIZE
    return Segment(vaddr=vaddr + start * BLOCK_SIZE, paddr=start * BLOCK_SIZE, offset=0, filesz=size, memsz=size)


def page(pfn: int) -> bytes:
    """Every third page is zero."""
    return bytes(BLOCK_SIZE) if pfn % 3 == 0 else (pfn.to_bytes(4, "little") + b"page") * (BLOCK_SIZE // 8)


def write(
    path: Path, segments: list[Segment], kept: set[int], *, finish: bool = True, order: list[int] | None = None
) -> None:
    with path.open("w+b") as file:
        sink: Sink = OutputFile(file.fileno(), str(path))
        size = max(each.paddr + each.memsz for each in segments) // BLOCK_SIZE
        writer = ElfWriter(sink, machine="x86_64", segments=segments, notes=b"n" * 20, kept=bitmap(kept, size))
        pfns = np.array(order or sorted(kept), dtype=np.int64)
        for part in np.array_split(pfns, 3):
            part.sort()
            parts = [page(pfn) for pfn in part.tolist() if any(page(pfn))]
            sizes = np.array([BLOCK_SIZE * any(page(pfn)) for pfn in part.tolist()], dtype=np.uint32)
            writer.write(PackedPages(parts, sizes, np.zeros(len(part), dtype=np.uint32)), part)
        if finish:
            assert writer.finish() == ()
        writer.close()


@settings(max_examples=200)
@given(kept=KEPT, most=st.integers(0, 50), longest=st.integers(1, 20))
def test_runs_hold_all_pages_and_fill_only_short_holes(kept: set[int], most: int, longest: int) -> None:
    runs = Runs.of(bitmap(kept), most, longest)
    held = {pfn for start, end in zip(runs.starts.tolist(), runs.ends.tolist(), strict=True)
            for pfn in range(start, end)}  # fmt: skip
    assert kept <= held
    gaps = runs.starts[1:] - runs.ends[:-1]
    assert (gaps > 0).all()
    if held != kept:
        assert (gaps > 1).all()
    missing = sorted(held - kept)
    longest_filled = max((len(run) for run in np.split(np.array(missing), np.flatnonzero(np.diff(missing) != 1) + 1)),
                         default=0)  # fmt: skip
    assert longest_filled <= longest


@settings(max_examples=200)
@given(kept=KEPT, spans=SPANS, odd=st.integers(0, BLOCK_SIZE - 1))
def test_program_headers_cover_each_segment_without_gap_or_overlap(
    kept: set[int], spans: list[tuple[int, int]], odd: int
) -> None:
    runs = Runs.of(bitmap(kept))
    for start, count in spans:
        whole = segment(start, count)
        # Firmware leaves ranges that neither begin nor end at a page.
        whole = Segment(vaddr=whole.vaddr + odd // 2, paddr=whole.paddr + odd // 2, offset=0,
                        filesz=whole.memsz - odd, memsz=whole.memsz - odd)  # fmt: skip
        at = whole.paddr
        held: set[int] = set()
        for piece in pieces([whole], runs):
            assert (piece.paddr, piece.vaddr) == (at, whole.vaddr + at - whole.paddr)
            assert 0 <= piece.filesz <= piece.memsz
            at += piece.memsz
            if piece.filesz:
                pfns = range(piece.paddr // BLOCK_SIZE, -(-(piece.paddr + piece.filesz) // BLOCK_SIZE))
                held.update(pfns)
                before = sum(min(end, pfns[0]) - min(start, pfns[0])
                             for start, end in zip(runs.starts.tolist(), runs.ends.tolist(), strict=True))  # fmt: skip
                assert piece.page == before
                assert piece.inside == piece.paddr % BLOCK_SIZE
        assert at == whole.paddr + whole.memsz
        assert held == {pfn for pfn in kept if start <= pfn < start + count}


@settings(max_examples=60)
@given(kept=KEPT, seed=st.randoms(use_true_random=False))
def test_what_is_written_is_read(kept: set[int], seed: object, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("elf") / "core"
    order = sorted(kept)
    seed.shuffle(order)  # type: ignore[attr-defined]  # a random.Random
    # The second maps the same memory again, as the kernel's text is mapped.
    write(path, [segment(0, 300), segment(100, 50, 1 << 46), segment(300, 100)], kept, order=order)
    verify_dump(path)
    with ElfCore(path) as core:
        assert core.notes_block == b"n" * 20
        assert core.doubts == ()
        assert {pfn for extent in core.extents for pfn in range(extent.start, extent.end)} == kept
        assert {pfn for start, end in core.holes for pfn in range(start, end)} == set(range(400)) - kept
        for pfn in kept:
            assert core.read(pfn * BLOCK_SIZE, BLOCK_SIZE) == page(pfn)
    with path.open("rb") as file:
        for found in ELFFile(file).iter_segments("PT_LOAD"):
            head = found.header
            assert head.p_vaddr - head.p_paddr in (1 << 47, 1 << 46)
            assert len(found.data()) == head.p_filesz


def test_more_segments_than_fit_into_the_header(tmp_path: Path) -> None:
    path = tmp_path / "core"
    # Holes of more than 256 pages are never filled.
    kept = set(range(1, 70_000 * 300, 300))
    write(path, [segment(0, 70_000 * 300)], kept)
    verify_dump(path)
    with path.open("rb") as file:
        elf = ELFFile(file)
        assert elf.header.e_phnum == 0xFFFF
        assert elf.get_section(0).header.sh_info == 70_002
    with ElfCore(path) as core:
        assert len(core.extents) == 70_000
        assert core.max_pfn == 70_000 * 300
        for pfn in (1, 301, 69_999 * 300 + 1):
            assert core.read(pfn * BLOCK_SIZE, BLOCK_SIZE) == page(pfn)
    raw = path.read_bytes()[: 4 << 20]
    (tmp_path / "cut").write_bytes(raw)
    with pytest.raises(DumpFormatError, match=r"beyond the end|ends inside"):
        verify_dump(tmp_path / "cut")


def test_an_unfinished_file_says_so(tmp_path: Path) -> None:
    path = tmp_path / "core"
    write(path, [segment(0, 400)], {5, 7, 200}, finish=False)
    with pytest.raises(DumpFormatError, match="incomplete"):
        verify_dump(path)
    with ElfCore(path) as core:
        assert any("is incomplete" in doubt for doubt in core.doubts)


def test_every_cut_is_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "core"
    write(path, [segment(0, 400)], {1, 7, 200, 202})
    whole = path.read_bytes()
    for size in [*range(1500), *range(1500, len(whole), 501), len(whole) - 1]:
        path.write_bytes(whole[:size])
        with pytest.raises(DumpFormatError):
            verify_dump(path)


def test_what_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "core").open("w+b") as file:
        sink = OutputFile(file.fileno(), "core")
        with pytest.raises(UnsupportedError, match="vax"):
            ElfWriter(sink, machine="vax", segments=[segment(0, 8)], notes=b"", kept=bitmap({1}))
        writer = ElfWriter(sink, machine="x86_64", segments=[segment(0, 8)], notes=b"", kept=bitmap({1}, 8))
        one = np.array([1], dtype=np.int64)
        with pytest.raises(DumpFormatError, match="packed"):
            writer.write(PackedPages([b"x"], np.array([1], np.uint32), np.array([Codec.ZLIB], np.uint32)), one)
        with pytest.raises(DumpFormatError, match="not among"):
            writer.write(PackedPages([page(1)], np.array([BLOCK_SIZE], np.uint32), np.zeros(1, np.uint32)), one + 1)
        with pytest.raises(DumpFormatError, match="0 pages were written of 1"):
            writer.finish()
