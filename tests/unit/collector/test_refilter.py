# SPDX-License-Identifier: GPL-2.0-or-later
"""A dump is memory, too: filtered again, read for its page tables, and what it left out stays left out."""

from __future__ import annotations

import io
import json
import random
from pathlib import Path

import numpy as np
import pytest
from fake_kernel import NEW, PAGE, PAGES, FakeKernel

from kdumpd.collector.__main__ import main
from kdumpd.collector.dump import Outcome, write_dump
from kdumpd.collector.options import DumpOptions
from kdumpd.collector.progress import Progress
from kdumpd.collector.source import Source, open_memory
from kdumpd.dumpfile.diskdump import Codec, Status
from kdumpd.dumpfile.dumped import DumpedMemory
from kdumpd.dumpfile.reader import DiskdumpReader
from kdumpd.errors import KdumpError, NoSpaceError, VmcoreError
from kdumpd.targets.files import OutputFile
from kdumpd.vmcore.elfcore import ElfCore

BUDDY = (0xF0 << 24) & 0xFFFFFFFF


@pytest.fixture
def kernel() -> FakeKernel:
    """A kernel whose memory is partly noise, partly zero, with a free block of 16 pages."""
    made = FakeKernel(NEW)
    chance = random.Random(7)
    for pfn in range(3000, 3600, 3):
        made.memory[pfn * PAGE : (pfn + 1) * PAGE] = chance.randbytes(64) * 64
    made.pages.view(np.uint32)[3008, 12] = BUDDY
    made.pages[3008, 5] = 4
    return made


@pytest.fixture
def core(kernel: FakeKernel, tmp_path: Path) -> Path:
    """Its vmcore."""
    return kernel.write(tmp_path / "core")


def run(*words: str | Path) -> None:
    assert main([*map(str, words), "--message-level", "4"]) == 0


def pages(path: Path) -> dict[int, bytes]:
    """All pages of a dump, by our reader."""
    with DiskdumpReader(path) as dump:
        found = {pfn: dump.page(pfn) for pfn in dump.pfns().tolist()}
    assert all(page is not None for page in found.values())
    return found  # type: ignore[return-value]  # just asserted


@pytest.mark.parametrize("options", [["-z"], ["-c", "-F"], ["-l"], ["-p"], []])
def test_a_dump_holds_the_memory_it_was_made_of(options: list[str], core: Path, tmp_path: Path) -> None:
    run("-d", "1", *options, core, tmp_path / "dump")
    with open_memory(tmp_path / "dump") as dump, open_memory(core) as memory:
        assert isinstance(dump, DumpedMemory)
        assert (dump.machine, dump.max_pfn, dump.nr_cpus()) == (memory.machine, memory.max_pfn, memory.nr_cpus())
        assert dump.notes_block == memory.notes_block
        everything = np.arange(PAGES, dtype=np.int64)
        left, right = (np.empty((PAGES, PAGE), dtype=np.uint8) for _ in range(2))
        assert not len(dump.read_pages(everything, left))
        memory.read_pages(everything, right)
        assert (left == right).all()
        for paddr, size in [(0, 1), (0x200123, 5000), (4095, 2), (PAGES * PAGE - 7, 7)]:
            assert dump.read(paddr, size) == memory.read(paddr, size)
        with pytest.raises(VmcoreError, match="is not in"):
            dump.read(PAGES * PAGE - 7, 8)


def test_an_architecture_that_the_header_does_not_name_is_known_by_vmcoreinfo(core: Path, tmp_path: Path) -> None:
    """As in QEMU's own dumps, whose headers say "Unknown"."""
    run("-z", core, tmp_path / "dump")
    with (tmp_path / "dump").open("r+b") as file:
        header = file.read(464)
        at = 12 + 4 * 65
        file.seek(at)
        file.write(b"Unknown".ljust(65, b"\0"))
    assert header[at:].startswith(b"x86_64")
    with DumpedMemory(tmp_path / "dump") as memory:
        assert memory.machine == "x86_64"


def test_filtering_again_leaves_out_more_and_brings_nothing_back(core: Path, tmp_path: Path) -> None:
    run("-d", "0", "-z", core, tmp_path / "all")
    run("-d", "16", "-c", tmp_path / "all", tmp_path / "again")
    run("-d", "16", "-z", core, tmp_path / "once")
    assert pages(tmp_path / "again") == pages(tmp_path / "once")
    assert len(pages(tmp_path / "once")) == PAGES - 16
    run("-d", "0", tmp_path / "once", tmp_path / "back")
    assert pages(tmp_path / "back") == pages(tmp_path / "once")
    with DiskdumpReader(tmp_path / "back") as dump:
        assert dump.present_count == PAGES


def test_pages_that_an_incomplete_dump_lost_are_left_out_not_made_up(
    core: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Small(OutputFile):
        """A file on a disk that fills."""

        def write_at(self, offset: int, data: bytes | bytearray | memoryview) -> None:
            if offset + len(data) > 700 << 10:
                raise NoSpaceError("full")
            super().write_at(offset, data)

        def write_parts(self, offset: int, parts: list[bytes]) -> None:
            self.write_at(offset, b"".join(parts))

    with (tmp_path / "cut").open("w+b") as file, Source.open(core) as source, pytest.raises(NoSpaceError):
        options = DumpOptions(levels=(0,), codec=Codec.RAW, threads=1)
        quiet = Progress(3, stream=io.StringIO())
        write_dump(source, Small(file.fileno(), "cut"), Outcome(), options, quiet)
    with DiskdumpReader(tmp_path / "cut") as cut:
        assert cut.header.status & Status.INCOMPLETE
        there = {pfn for pfn in cut.pfns().tolist() if cut.page(pfn) is not None}
    assert 100 < len(there) < PAGES
    with Source.open(tmp_path / "cut") as source:
        assert any("is incomplete" in note for note in source.notes)

    # What is made of it is no more complete than that, in whatever format, however often.
    def refused(*words: str | Path) -> str:
        assert main([*map(str, words), "--json", "--message-level", "4"]) == 1
        said = json.loads(capsys.readouterr().out)
        assert said["result"] == "incomplete"
        return str(said["reason"])

    reason = refused("-d", "0", "-z", tmp_path / "cut", tmp_path / "again")
    made = tmp_path / "again.incomplete"
    assert reason == f"{tmp_path / 'cut'} is incomplete; {made} holds what there is"
    assert not (tmp_path / "again").exists()
    assert set(pages(made)) == there
    with DiskdumpReader(made) as dump:
        assert dump.incomplete
    refused("-d", "0", "-c", made, tmp_path / "twice")
    refused("-d", "0", "-E", made, tmp_path / "elf")
    refused("-d", "0", "-z", tmp_path / "elf.incomplete", tmp_path / "of-elf")
    refused("-d", "0", "--split", made, tmp_path / "part1", tmp_path / "part2")
    refused("-d", "0", "-F", made, tmp_path / "stream")
    refused("-d", "0", tmp_path / "stream.incomplete", tmp_path / "of-stream")
    names = ("twice", "of-elf", "part1", "stream", "of-stream")
    for name in names:
        with DiskdumpReader(tmp_path / f"{name}.incomplete") as dump:
            assert dump.incomplete, name
    assert not [name for name in (*names, "elf", "part2") if (tmp_path / name).exists()]


def test_a_cut_dump_is_a_sentence_or_what_is_there(core: Path, tmp_path: Path) -> None:
    run("-d", "17", "-z", core, tmp_path / "dump")
    whole = (tmp_path / "dump").read_bytes()
    cut = tmp_path / "cut"
    for size in [*range(0, 20_000, 499), *range(20_000, len(whole), 9973)]:
        cut.write_bytes(whole[:size])
        try:
            with open_memory(cut) as dump:
                out = np.empty((PAGES, PAGE), dtype=np.uint8)
                bad = dump.read_pages(np.arange(PAGES, dtype=np.int64), out)
                assert len(bad) > 0
        except VmcoreError as error:
            assert str(cut) in str(error)


def test_damaged_dumps_are_sentences(core: Path, tmp_path: Path) -> None:
    run("-d", "17", "-z", core, tmp_path / "dump")
    whole = (tmp_path / "dump").read_bytes()
    chance = random.Random(3)
    damaged = tmp_path / "damaged"
    for _ in range(150):
        raw = bytearray(whole)
        for _ in range(4):
            raw[chance.choice([chance.randrange(600), chance.randrange(4096, 4200), chance.randrange(len(raw))])] = (
                chance.randrange(256)
            )
        damaged.write_bytes(raw)
        try:
            with Source.open(damaged) as source:
                source.log_lines()
                found = source.classify(31)
                assert found.kept_count <= found.total
        except KdumpError as error:
            assert str(damaged) in str(error)


@pytest.mark.parametrize("version", [1, 2, 3, 4, 5])
def test_older_headers(version: int, core: Path, tmp_path: Path) -> None:
    """Later fields of the sub header do not exist in an older dump, whatever bytes lie in their place."""
    run("-d", "0", "-z", core, tmp_path / "dump")
    raw = bytearray((tmp_path / "dump").read_bytes())
    raw[8:12] = version.to_bytes(4, "little")
    used = {1: 12, 2: 32, 3: 48, 4: 64, 5: 80}[version]
    raw[4096 + used : 4200] = b"\xee" * (104 - used)
    (tmp_path / "dump").write_bytes(raw)
    with open_memory(tmp_path / "dump") as dump, open_memory(core) as memory:
        assert dump.max_pfn == PAGES
        assert dump.read(0x200000, 8192) == memory.read(0x200000, 8192)
        assert (dump.vmcoreinfo_note() is not None) == (version >= 3)


def test_vmcoreinfo_is_found_in_memory(kernel: FakeKernel, tmp_path: Path) -> None:
    kernel.hide_note(uts_at=0x200400)
    core = kernel.write(tmp_path / "core")
    with Source.open(core) as source:
        assert source.info.release == "6.1.0-fake"
        assert source.tables is not None
        assert any("found in the memory" in note for note in source.notes)
        assert source.classify(16).kept_count == PAGES - 16


@pytest.mark.parametrize("spoil", ["nothing names it", "another kernel", "two of them"])
def test_a_note_in_memory_that_proves_nothing_is_not_believed(spoil: str, kernel: FakeKernel, tmp_path: Path) -> None:
    if spoil == "nothing names it":
        kernel.missing.add("SYMBOL(init_uts_ns)")
    kernel.hide_note(uts_at=0x200400)
    if spoil == "another kernel":
        kernel.memory[0x200400 + 130 : 0x200400 + 140] = b"6.5.0-else"
    if spoil == "two of them":
        other = bytes(kernel.memory[kernel.note_at : kernel.note_at + PAGE]).replace(b"PG_lru)=4", b"PG_lru)=5")
        kernel.memory[3900 * PAGE : 3901 * PAGE] = other
    with Source.open(kernel.write(tmp_path / "core")) as source:
        assert source.info.release is None
        assert any("there is no VMCOREINFO note" in note for note in source.notes)
        found = source.classify(31)
        assert found.kept_count == found.total == PAGES


def test_holes_of_an_elf_core_stay_holes(kernel: FakeKernel, tmp_path: Path) -> None:
    path = kernel.write(tmp_path / "core", [(0, 2000), (2000, 3000), (3000, 4096)])
    raw = bytearray(path.read_bytes())
    # The second segment keeps 100 of its 1000 pages; p_filesz is the 5th u64 of a program header.
    raw[64 + 2 * 56 + 32 : 64 + 2 * 56 + 40] = (100 * PAGE).to_bytes(8, "little")
    path.write_bytes(raw)
    with ElfCore(path) as core:
        assert core.holes == ((2100, 3000),)
        assert core.max_pfn == PAGES
    run("-d", "0", "-z", path, tmp_path / "dump")
    assert set(pages(tmp_path / "dump")) == set(range(PAGES)) - set(range(2100, 3000))
