# SPDX-License-Identifier: GPL-2.0-or-later
"""Writing and reading back, whole, cut at any byte, and damaged."""

from __future__ import annotations

import hashlib
import itertools
import random
from pathlib import Path

import numpy as np
import pytest

from kdumpd.dumpfile.codecs import packer
from kdumpd.dumpfile.diskdump import BLOCK_SIZE, Codec, Status, Utsname
from kdumpd.dumpfile.flattened import FlattenedSink
from kdumpd.dumpfile.manifest import FileRecord, Manifest, Region, Result, Step
from kdumpd.dumpfile.packing import PackedPages
from kdumpd.dumpfile.reader import DiskdumpReader, verify
from kdumpd.dumpfile.writer import DiskdumpWriter, Origin
from kdumpd.errors import DumpFormatError, NoSpaceError
from kdumpd.targets.files import CrashDirectory
from kdumpd.targets.stream import OutputStream

ORIGIN = Origin(
    utsname=Utsname(nodename="host", release="6.1.0-fake", version="#1", machine="x86_64"),
    time_sec=1_700_000_000,
    nr_cpus=2,
    phys_base=-(1 << 20),
    notes=b"n" * 5000,
    vmcoreinfo_at=100,
    vmcoreinfo_size=50,
)
MAX_MAPNR = 70_000
PFNS = [0, 1, 7, 8, 4096, 32767, 32768, 40_000, 69_999]


def pages() -> dict[int, bytes]:
    """Zero pages, packable pages and one of noise."""
    chance = random.Random(1)
    found = {pfn: bytes([pfn % 251]) * BLOCK_SIZE for pfn in PFNS}
    found[8] = chance.randbytes(BLOCK_SIZE)
    return found


def bitmap(pfns: list[int]) -> np.ndarray:
    bits = np.zeros(-(-MAX_MAPNR // 8) * 8, dtype=np.uint8)
    bits[pfns] = 1
    return np.packbits(bits, bitorder="little")


def packed(codec: Codec, pfns: list[int]) -> tuple[PackedPages, np.ndarray]:
    """Those of `pages()` as the writer takes them."""
    parts, sizes, flags = [], [], []
    for content in (pages()[pfn] for pfn in pfns):
        small = b"" if not any(content) else content if codec is Codec.RAW else packer(codec)(memoryview(content))
        raw = len(small) >= BLOCK_SIZE
        parts.append(content if raw else small)
        sizes.append(len(parts[-1]))
        flags.append(Codec.RAW if raw or not small else codec)
    return PackedPages(
        [part for part in parts if part], np.array(sizes, np.uint32), np.array(flags, np.uint32)
    ), np.array(pfns)


def write(
    folder: Path,
    codec: Codec = Codec.ZSTD,
    *,
    finish: bool = True,
    order: list[list[int]] | None = None,
    flattened: bool = False,
) -> tuple[Path, tuple[Region, ...]]:
    """A dump of `pages()`, in batches of `order`."""
    with CrashDirectory.create(folder, "", "crash") as directory, directory.create_file("dump") as file:
        stream = FlattenedSink(OutputStream(file.fileno(), "dump")) if flattened else None
        writer = DiskdumpWriter(
            stream or file, ORIGIN, codec=codec, level=31, max_mapnr=MAX_MAPNR,
            present=bitmap([*PFNS, 500]), kept=bitmap(PFNS),
        )  # fmt: skip
        for batch in order or [[pfn] for pfn in PFNS]:
            writer.write(*packed(codec, batch))
        regions: tuple[Region, ...] = ()
        if finish:
            regions = writer.finish()
            if stream is not None:
                stream.end()
        else:
            writer.checkpoint()
    return directory.path / "dump", regions


@pytest.mark.parametrize("codec", list(Codec))
def test_what_is_written_is_read(codec: Codec, tmp_path: Path) -> None:
    path, regions = write(tmp_path, codec)
    verify(path)
    with DiskdumpReader(path) as dump:
        assert not dump.incomplete
        assert dump.header.status == codec
        assert dump.header.utsname == ORIGIN.utsname
        assert dump.header.max_mapnr == MAX_MAPNR
        assert dump.header.nr_cpus == 2
        assert dump.notes() == ORIGIN.notes
        assert dump.header.vmcoreinfo_offset == BLOCK_SIZE + 104 + 100
        assert dump.pfns().tolist() == PFNS
        assert dump.present_count == len(PFNS) + 1
        assert {pfn: dump.page(pfn) for pfn in PFNS} == pages()
        assert [dump.page(pfn) for pfn in (2, 500, 69_998, 70_000, 10**9, -1)] == [None] * 6
    raw = path.read_bytes()
    assert [each.offset for each in regions] == [0, *(each.offset + each.size_bytes for each in regions[:-1])]
    assert regions[-1].offset + regions[-1].size_bytes == len(raw)
    assert len(regions) == 4
    for each in regions:
        assert hashlib.sha256(raw[each.offset : each.offset + each.size_bytes]).hexdigest() == each.sha256


@pytest.mark.parametrize(
    "order", [[PFNS], [[32768, 69_999], [7], [0, 1, 8, 4096, 32767, 40_000]], [[p] for p in PFNS[::-1]]]
)
def test_pages_may_come_in_any_order(order: list[list[int]], tmp_path: Path) -> None:
    path, _ = write(tmp_path, order=order)
    verify(path)
    with DiskdumpReader(path) as dump:
        assert {pfn: dump.page(pfn) for pfn in PFNS} == pages()


def test_an_unfinished_dump_says_so_and_can_be_read(tmp_path: Path) -> None:
    path, _ = write(tmp_path, finish=False)
    with DiskdumpReader(path) as dump:
        assert dump.header.status & Status.INCOMPLETE
        assert {pfn: dump.page(pfn) for pfn in PFNS} == pages()
    with pytest.raises(DumpFormatError, match="incomplete"):
        verify(path)


def test_a_flattened_dump_is_written_once_and_read_as_any_other(tmp_path: Path) -> None:
    path, _ = write(tmp_path, flattened=True)
    verify(path)
    with DiskdumpReader(path) as dump:
        assert not dump.incomplete
        assert {pfn: dump.page(pfn) for pfn in PFNS} == pages()
    raw = path.read_bytes()
    spans, at = [], 4096
    while raw[at : at + 16] != b"\xff" * 16:
        start, size = (int.from_bytes(raw[at + each : at + each + 8], "big") for each in (0, 8))
        spans.append((start, start + size))
        at += 16 + size
    spans.sort()
    assert all(left[1] <= right[0] for left, right in itertools.pairwise(spans))
    for size in range(4096, len(raw), 1009):
        path.write_bytes(raw[:size])
        with pytest.raises(DumpFormatError):
            verify(path)


def test_verify_finds_every_cut(tmp_path: Path) -> None:
    path, _ = write(tmp_path)
    whole = path.read_bytes()
    cut = tmp_path / "cut"
    for size in [*range(0, len(whole), 997), len(whole) - 1]:
        cut.write_bytes(whole[:size])
        with pytest.raises(DumpFormatError):
            verify(cut)


def test_a_damaged_dump_is_an_error_not_a_traceback(tmp_path: Path) -> None:
    path, _ = write(tmp_path)
    whole = path.read_bytes()
    chance = random.Random(2)
    damaged = tmp_path / "damaged"
    for _ in range(300):
        raw = bytearray(whole)
        for _ in range(4):
            raw[chance.choice([chance.randrange(600), chance.randrange(len(raw))])] = chance.randrange(256)
        damaged.write_bytes(raw)
        try:
            with DiskdumpReader(damaged) as dump:
                for pfn in PFNS:
                    dump.page(pfn)
        except DumpFormatError as error:
            assert str(damaged) in str(error)


def test_room_for_the_descriptors_is_taken_first(tmp_path: Path) -> None:
    """On a target that is too small for them the dump fails before its first page."""

    class Full:
        name = "full"
        rewritable = True

        def free_bytes(self) -> int | None:
            return 0

        def reserve(self, size: int) -> None:
            raise NoSpaceError("no room")

        def write_at(self, offset: int, data: object) -> None:
            raise AssertionError("written before the room was there")

        def write_parts(self, offset: int, parts: object) -> None:
            raise AssertionError("written before the room was there")

        def read_at(self, offset: int, size: int) -> bytes:
            return b""

        def sync(self) -> None: ...

    with pytest.raises(NoSpaceError):
        DiskdumpWriter(
            Full(), ORIGIN, codec=Codec.ZSTD, level=31, max_mapnr=MAX_MAPNR,
            present=bitmap(PFNS), kept=bitmap(PFNS),
        )  # fmt: skip


MANIFEST = Manifest(
    result=Result.COMPLETE, hostname="h", kernel="6.1", started_usec=1, finished_usec=2, kdumpd_version="0.1",
    dump=FileRecord(name="vmcore", size_bytes=3, regions=(Region(offset=0, size_bytes=3, sha256="ab"),)),
    log=FileRecord(name="log", size_bytes=1, sha256="cd"), pages={"kept": 1}, notes=("a", "b"),
    compression_level=-1, timings_sec={"rest": 1.5}, lowest_available_bytes=5, steps=(Step("critical", "why"),),
)  # fmt: skip


def test_manifest_round_trip() -> None:
    assert Manifest.from_json(MANIFEST.to_json(), "m") == MANIFEST
    later = MANIFEST.to_json().replace('"reason"', '"of a later version": 1, "reason"')
    assert Manifest.from_json(later, "m") == MANIFEST


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", "null", MANIFEST.to_json().replace('"format": 1', '"format": 2'),
     MANIFEST.to_json().replace('"complete"', '"splendid"'),
     MANIFEST.to_json().replace('"hostname": "h"', '"hostname": 1'),
     MANIFEST.to_json().replace('"started_usec": 1', '"started_usec": "x"'),
     MANIFEST.to_json().replace('"kept": 1', '"kept": "many"')],
)  # fmt: skip
def test_a_bad_manifest_is_one_sentence(text: str) -> None:
    with pytest.raises(DumpFormatError, match=r"^/m: not a manifest"):
        Manifest.from_json(text, "/m")
