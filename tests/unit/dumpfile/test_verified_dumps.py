# SPDX-License-Identifier: GPL-2.0-or-later
"""The check of a finished dump: what it finds, what it compares with, and that damage anywhere is told or harmless."""

from __future__ import annotations

import hashlib
import io
import os
import random
from pathlib import Path

import numpy as np
import pytest
from fake_kernel import OLD, PAGE, PAGES, FakeKernel

from kdumpd.collector.dump import PHASES, Outcome, check_dump, write_dump
from kdumpd.collector.options import DumpOptions
from kdumpd.collector.progress import Progress
from kdumpd.collector.source import Source
from kdumpd.dumpfile.diskdump import DESCRIPTOR, Codec
from kdumpd.dumpfile.reader import DiskdumpReader, verify
from kdumpd.errors import DumpFormatError
from kdumpd.targets.files import OutputFile
from kdumpd.vmcore.elfcore import ElfCore

QUIET = Progress(PHASES, stream=io.StringIO())
OPTIONS = DumpOptions(levels=(31,), codec=Codec.ZSTD, compression_level=1)


@pytest.fixture
def core(tmp_path: Path) -> Path:
    kernel = FakeKernel(OLD)
    for others in (slice(0, 0x280), slice(0x580, None)):
        kernel.pages[others, 0] = 1 << 4
    chance = random.Random(5)
    for pfn in range(0x300, 0x3C0):
        kernel.memory[pfn * PAGE : (pfn + 1) * PAGE] = bytes(chance.choices(b"kernel text", k=PAGE))
    return kernel.write(tmp_path / "core")


@pytest.fixture
def saved(core: Path, tmp_path: Path) -> tuple[Path, Outcome]:
    out, outcome = tmp_path / "out", Outcome()
    with Source.open(core) as source, OutputFile(os.open(out, os.O_RDWR | os.O_CREAT, 0o600), str(out)) as file:
        write_dump(source, file, outcome, OPTIONS, QUIET)
        check_dump(out, source, outcome, OPTIONS, QUIET)
        assert source.needed
    assert outcome.pages["verified"] > 64
    return out, outcome


def test_a_dump_of_other_memory_is_noticed(saved: tuple[Path, Outcome], core: Path) -> None:
    path, outcome = saved
    with DiskdumpReader(path) as dump:
        pfn = int(dump.pfns()[-1])
    with core.open("r+b") as file:
        file.seek((pfn - PAGES) * PAGE, os.SEEK_END)
        file.write(b"changed")
    with ElfCore(core) as memory:
        with pytest.raises(DumpFormatError, match=f"pfn {pfn:#x}, is not what .*core holds"):
            verify(path, memory=memory)
        assert verify(path, memory=memory, unreadable={pfn}) >= 64
    assert outcome.unreadable == frozenset()


def test_a_needed_page_that_is_missing_is_noticed(saved: tuple[Path, Outcome]) -> None:
    with pytest.raises(DumpFormatError, match="page tables, pfn 0xfff0, is missing"):
        verify(saved[0], needed={"page tables": np.array([0xFFF0])})


def test_descriptors_are_checked_one_by_one(saved: tuple[Path, Outcome]) -> None:
    path, _ = saved
    whole = path.read_bytes()
    with DiskdumpReader(path) as dump:
        start, count = dump.header.descriptor_offset, dump.page_count
    for number in (0, count // 2, count - 1):
        for field, value, text in [
            (0, 0, "outside"), (0, start, "outside"), (0, len(whole), "outside"), (0, -1, "outside"),
            (1, 0, "outside"), (1, 4097, "outside"), (2, 3, "no way of packing"), (2, 0x40, "no way of packing"),
        ]:  # fmt: skip
            raw = bytearray(whole)
            at = start + number * DESCRIPTOR.size
            fields = list(DESCRIPTOR.unpack_from(raw, at))
            fields[field] = value
            DESCRIPTOR.pack_into(raw, at, *fields)
            path.write_bytes(raw)
            with pytest.raises(DumpFormatError, match=f"descriptor of page {number} of {count} .*{text}"):
                verify(path)


def test_damage_in_any_region_is_told_or_harmless(saved: tuple[Path, Outcome], core: Path) -> None:
    """A flipped byte either raises DumpFormatError, or all pages are still what they were, or a checksum tells."""
    path, outcome = saved
    whole = path.read_bytes()
    with DiskdumpReader(path) as dump:
        pfns = dump.pfns().tolist()
        pages = {pfn: dump.page(pfn) for pfn in pfns}
    chance = random.Random(9)
    told = 0
    for region in outcome.regions:
        for _ in range(40):
            at = region.offset + chance.randrange(region.size_bytes)
            raw = bytearray(whole)
            raw[at] ^= 1 << chance.randrange(8)
            path.write_bytes(raw)
            part = bytes(raw[region.offset : region.offset + region.size_bytes])
            assert hashlib.sha256(part).hexdigest() != region.sha256
            try:
                with ElfCore(core) as memory:
                    verify(path, sample=None, memory=memory)
            except DumpFormatError as error:
                told += 1
                assert str(path) in str(error)
            else:
                with DiskdumpReader(path) as dump:
                    assert {pfn: dump.page(pfn) for pfn in pfns} == pages
    assert told > 60


def test_whatever_is_kept_in_memory_is_small(saved: tuple[Path, Outcome], monkeypatch: pytest.MonkeyPatch) -> None:
    """No single read is larger than a MiB, whatever the size of the dump."""
    sizes: list[int] = []
    real = os.pread

    def pread(fd: int, size: int, offset: int) -> bytes:
        sizes.append(size)
        return real(fd, size, offset)

    monkeypatch.setattr("kdumpd.dumpfile.stored.os.pread", pread)
    verify(saved[0])
    assert max(sizes) <= 1 << 20
