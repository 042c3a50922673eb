# SPDX-License-Identifier: GPL-2.0-or-later
"""arm64 kernels with pages of 4, 16 and 64 KiB: filtered, written in every format, read back, whatever they claim."""

from __future__ import annotations

import io
import json
import os
import random
import struct
from pathlib import Path

import numpy as np
import pytest
from fake_kernel import NEW, FakeKernel
from test_refilter import pages, run

from kdumpd.collector.__main__ import main
from kdumpd.collector.copy import MAX_WORKERS, Copied, Copier
from kdumpd.collector.dump import PHASES, Outcome, write_dump
from kdumpd.collector.options import DumpOptions
from kdumpd.collector.progress import Progress
from kdumpd.collector.sample import SampledPages
from kdumpd.collector.source import Source
from kdumpd.dumpfile.diskdump import Codec
from kdumpd.dumpfile.reader import DiskdumpReader
from kdumpd.targets.files import OutputFile
from kdumpd.vmcore.elfcore import ElfCore
from kdumpd.vmcore.rules import PageClass

SHIFTS = (12, 14, 16)
BUDDY, SLAB = (0xF0 << 24) & 0xFFFFFFFF, (0xF5 << 24) & 0xFFFFFFFF
LRU, HWPOISON = 1 << 4, 1 << 22


class World:
    """A kernel with pages of each class from `first` on, none of them zero, and which of them level 31 keeps."""

    def __init__(self, shift: int, folder: Path) -> None:
        self.kernel = kernel = FakeKernel(NEW, arm64_shift=shift)
        self.size, self.first = kernel.page_size, kernel.count * 3 // 4
        chance = random.Random(shift)
        for pfn in range(self.first, kernel.count):
            piece = chance.randbytes(self.size if pfn % 4 == 0 else 64)
            kernel.memory[pfn * self.size : (pfn + 1) * self.size] = piece * (self.size // len(piece))
        user, cache, broken, slab, free = (self.first + number for number in (1, 2, 3, 4, 16))
        kernel.pages[user, 3] = 0x1001
        kernel.pages[cache, 0] = LRU
        kernel.pages[broken, 0] = HWPOISON
        kernel.pages.view(np.uint32)[slab, 12] = SLAB
        kernel.pages.view(np.uint32)[free, 12] = BUDDY
        kernel.pages[free, 5] = 4
        self.core = kernel.write(folder / "core")
        self.left_out = {user, cache, broken, *range(free, free + 16)}

    def page(self, pfn: int) -> bytes:
        return bytes(self.kernel.memory[pfn * self.size : (pfn + 1) * self.size])


@pytest.fixture(params=SHIFTS, ids=lambda shift: f"{1 << shift >> 10}k")
def world(request: pytest.FixtureRequest, tmp_path: Path) -> World:
    return World(request.param, tmp_path)


def test_pages_are_told_apart(world: World) -> None:
    with Source.open(world.core) as source:
        found = source.classify(31)
        assert source.tables is not None
        assert (source.tables.page_size, source.core.page_size) == (world.size, world.size)
        assert source.core.max_pfn == found.total == world.kernel.count
        assert source.steps == []
        assert not [note for note in source.notes if "PAGESIZE" in note or "nothing is left out" in note]
    kept = np.flatnonzero(np.unpackbits(found.kept, bitorder="little"))
    assert set(range(world.kernel.count)) - set(kept.tolist()) == world.left_out
    assert {each: count for each, count in found.counts.items() if count} == {
        PageClass.FREE: 16, PageClass.USER: 1, PageClass.CACHE: 1, PageClass.HWPOISON: 1
    }  # fmt: skip


@pytest.mark.parametrize("option", [["-z"], ["-c"], ["-l"], ["-p"], [], ["-z", "--num-threads", "2"]])
def test_a_dump_has_blocks_of_the_kernels_pages(world: World, option: list[str], tmp_path: Path) -> None:
    run(*option, "-d", "31", world.core, tmp_path / "out")
    run("--verify", tmp_path / "out")
    found = pages(tmp_path / "out")
    assert set(found) == set(range(world.kernel.count)) - world.left_out
    assert all(page == world.page(pfn) for pfn, page in found.items())
    raw = (tmp_path / "out").read_bytes()
    # struct disk_dump_header, block_size and sub_hdr_size; the sub header's offset_note, and what lies there.
    assert struct.unpack_from("<i", raw, 428) == (world.size,)
    (note_at,) = struct.unpack_from("<q", raw, world.size + 48)
    assert note_at == world.size + 104
    assert struct.unpack_from("<III", raw, note_at) == (5, 336, 1)
    with DiskdumpReader(tmp_path / "out") as dump:
        assert dump.header.descriptor_offset % world.size == 0
    packed = [size for size in sizes(tmp_path / "out") if size < world.size]
    assert bool(packed) == bool(option)


def sizes(path: Path) -> list[int]:
    with DiskdumpReader(path) as dump:
        return [size for _, table in dump.descriptors() for size in table["size"].tolist()]


def test_the_same_pages_through_every_format(world: World, tmp_path: Path) -> None:
    run("-z", "-d", "31", world.core, tmp_path / "first")
    wanted = pages(tmp_path / "first")
    run("-z", "-d", "0", world.core, tmp_path / "whole")
    steps: list[tuple[list[str], str]] = [
        (["-c", "-d", "31"], "whole"), (["-F", "-z", "-d", "31"], "whole"), (["-E", "-d", "31"], "core"),
        (["-E", "-d", "31"], "first"), (["-E", "-F", "-d", "31"], "core"),
    ]  # fmt: skip
    for number, (options, source) in enumerate(steps):
        middle, again = tmp_path / f"middle{number}", tmp_path / f"again{number}"
        run(*options, tmp_path / source, middle)
        if options[:2] == ["-E", "-F"]:
            run("--verify", middle)
            continue
        run("-l", "-d", "31", middle, again)
        assert pages(again) == wanted, options
    parts = [tmp_path / f"part{number}" for number in range(3)]
    run("--split", "-z", "-d", "31", world.core, *parts)
    run("--reassemble", *parts, tmp_path / "joined")
    assert pages(tmp_path / "joined") == wanted


def test_an_elf_core_has_whole_pages(world: World, tmp_path: Path) -> None:
    run("-E", "-d", "31", world.core, tmp_path / "elf")
    with ElfCore(tmp_path / "elf") as core:
        core.use_pages(world.kernel.page_shift)
        for pfn in (0, world.first, world.first + 4, world.kernel.count - 1):
            assert core.read(pfn * world.size, world.size) == world.page(pfn)
        assert not any(core.has(pfn) for pfn in world.left_out)


def test_memory_usage(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--mem-usage", "--json", str(world.core)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["page_size"] == world.size
    assert found["pages"]["kept"] == world.kernel.count - len(world.left_out)
    # Before the noise: all that the kernel did not use.
    assert 0 < found["pages"]["zero"] < world.first


def test_what_fits_is_estimated_in_bytes(world: World, tmp_path: Path) -> None:
    """Noise does not shrink: the dump needs at least what those pages take."""
    with Source.open(world.core) as source:
        kept = source.classify(31).kept
        sample = SampledPages(source.core, kept)
        assert sample._source.view.nbytes <= 4 << 20
        assert sample.packed(Codec.ZSTD, 1).bytes_per_page < world.size / 2
        assert sample.packed(Codec.RAW, None).bytes_per_page <= world.size


def test_batches_take_no_more_memory(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kdumpd.collector.copy.available_memory", lambda: None)
    asked: list[tuple[int, int]] = []

    def workers(count: int, _core: object, _codec: Codec, pages_each: int, slots: int) -> None:
        asked.append((pages_each * world.size, slots))

    monkeypatch.setattr("kdumpd.collector.copy.Workers", workers)
    with Source.open(world.core) as source:
        for threads in (1, MAX_WORKERS):
            Copier(source.core, None, codec=Codec.ZSTD, threads=threads, step=lambda: None, copied=Copied())  # type: ignore[arg-type]
    assert [size for size, _ in asked] == [2 << 20, 1 << 20]


@pytest.mark.parametrize("wrong", range(4))
def test_a_wrong_page_size_costs_nothing(world: World, wrong: int, tmp_path: Path) -> None:
    others = [str(1 << shift) for shift in SHIFTS if shift != world.kernel.page_shift]
    told = [*others, "5", None][wrong]
    if told is None:
        world.kernel.missing.add("PAGESIZE")
    else:
        world.kernel.extra.append(f"PAGESIZE={told}")
    core = world.kernel.write(tmp_path / "lying")
    run("-z", "-d", "31", core, tmp_path / "out")
    assert set(pages(tmp_path / "out")) == set(range(world.kernel.count)) - world.left_out
    with Source.open(core) as source:
        says = "VMCOREINFO has no PAGESIZE" if told is None else f"VMCOREINFO says that PAGESIZE is {told}"
        assert f"{says}; the page tables are of pages of {world.size} bytes" in source.notes


def test_without_page_tables_everything_is_kept_in_the_size_that_is_told(world: World, tmp_path: Path) -> None:
    world.kernel.missing.add("SYMBOL(swapper_pg_dir)")
    core = world.kernel.write(tmp_path / "blind")
    run("-z", "-d", "31", core, tmp_path / "out")
    found = pages(tmp_path / "out")
    assert len(found) == world.kernel.count
    assert all(page == world.page(pfn) for pfn, page in found.items())


def test_blocks_that_are_no_pages(world: World, tmp_path: Path) -> None:
    """As QEMU writes them of every arm64 guest: all of it can be read, and nothing more is left out."""
    other = 16 if world.kernel.page_shift != 16 else 12
    odd, again = tmp_path / "odd", tmp_path / "again"
    with Source.open(world.core) as source, OutputFile(os.open(odd, os.O_RDWR | os.O_CREAT, 0o600), str(odd)) as file:
        source.core.use_pages(other)
        options = DumpOptions(levels=(0,), codec=Codec.ZSTD)
        write_dump(source, file, Outcome(), options, Progress(PHASES, stream=io.StringIO()))
    with Source.open(odd) as source:
        assert source.tables is not None
        assert (source.core.page_shift, source.tables.page_shift) == (other, world.kernel.page_shift)
        assert source.classify(31).kept_count == source.core.max_pfn
        assert [step.step for step in source.steps] == ["everything"]
        assert list(source.stages()) == []
    run("-z", "-d", "31", odd, again)
    assert b"".join(page for _, page in sorted(pages(again).items())) == bytes(world.kernel.memory)


def test_the_note_is_found_in_memory(world: World, tmp_path: Path) -> None:
    world.kernel.hide_note(uts_at=0x300000)
    core = world.kernel.write(tmp_path / "hidden")
    run("-z", "-d", "31", core, tmp_path / "out")
    assert set(pages(tmp_path / "out")) == set(range(world.kernel.count)) - world.left_out
    with Source.open(core) as source:
        assert source.utsname().machine == "aarch64"


def test_a_page_in_parts_is_not_made_up(tmp_path: Path) -> None:
    """A kernel with pages of 4 KiB serves the memory of one with 64: of page 2 there is a half, of page 5 the start."""
    world = World(16, tmp_path)
    raw, (at,) = world.core.read_bytes(), struct.unpack_from("<Q", world.core.read_bytes(), 64 + 56 + 8)
    notes = raw[64 + 2 * 56 : at]
    spans = [(0, 0x20000), (0x28000, 0x52000), (0x60000, 0x1000000)]
    headers = 64 + 56 * (1 + len(spans))
    offset = -(-(headers + len(notes)) // 4096) * 4096
    out = bytearray(raw[:56] + struct.pack("<H", 1 + len(spans)) + raw[58:64])
    out += struct.pack("<IIQQQQQQ", 4, 0, headers, 0, 0, len(notes), len(notes), 4)
    for start, end in spans:
        out += struct.pack("<IIQQQQQQ", 1, 7, offset, 0, start, end - start, end - start, 0)
        offset += end - start
    out = bytearray((out + notes).ljust(-(-(headers + len(notes)) // 4096) * 4096, b"\0"))
    out += b"".join(bytes(world.kernel.memory[start:end]) for start, end in spans)
    (tmp_path / "mixed").write_bytes(out)
    run("-z", "-d", "0", tmp_path / "mixed", tmp_path / "out")
    found = pages(tmp_path / "out")
    assert set(range(world.kernel.count)) - set(found) == {2, 5, world.first + 3}
    assert all(page == world.page(pfn) for pfn, page in found.items())
