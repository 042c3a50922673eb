# SPDX-License-Identifier: GPL-2.0-or-later
"""What is written when the target is too small, and when a rule would leave out what must not be left out."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pytest
from fake_kernel import OLD, PAGE, PAGES, FakeKernel

from kdumpd.collector.dump import PHASES, Outcome, write_dump
from kdumpd.collector.options import DumpOptions
from kdumpd.collector.progress import Progress
from kdumpd.collector.sample import Cost, best_level
from kdumpd.collector.source import Source
from kdumpd.dumpfile.diskdump import Codec
from kdumpd.dumpfile.manifest import Step
from kdumpd.dumpfile.reader import DiskdumpReader, verify
from kdumpd.errors import NoSpaceError
from kdumpd.targets.files import OutputFile

CACHE = range(PAGES // 2, PAGES)
NOISE = range(0x300, 0x340)


@pytest.fixture
def kernel() -> FakeKernel:
    """Half of its pages are cache full of noise, 64 others are noise, too; the rest is hardly filled."""
    kernel = FakeKernel(OLD)
    kernel.pages[CACHE.start :, 0] = 1 << 4
    for pages in (CACHE, NOISE):
        kernel.memory[pages.start * PAGE : pages.stop * PAGE] = os.urandom(len(pages) * PAGE)
    return kernel


class SmallDisk(OutputFile):
    """A file on a disk with `room` bytes, which it tells."""

    room = 0

    def free_bytes(self) -> int:
        return self.room


def save(
    core: Path, out: Path, room: int, *levels: int, codec: Codec = Codec.ZSTD
) -> tuple[Source, Outcome, str | None]:
    """The source with its steps, the outcome, and the sentence when room ran out."""
    outcome = Outcome()
    options = DumpOptions(levels=levels, codec=codec, compression_level=1)
    with Source.open(core) as source, SmallDisk(os.open(out, os.O_RDWR | os.O_CREAT, 0o600), str(out)) as file:
        file.room = room
        try:
            write_dump(source, file, outcome, options, Progress(PHASES, stream=io.StringIO()))
        except NoSpaceError as error:
            return source, outcome, error.sentence
    return source, outcome, None


def steps(source: Source) -> list[str]:
    return [step.step for step in source.steps]


@pytest.mark.parametrize(
    ("room", "taken", "expected"),
    [
        (64 << 20, 1, []),
        (6 << 20, 31, ["not-level-1", "level-31"]),
    ],
)
def test_the_first_level_that_fits_is_taken(
    kernel: FakeKernel, room: int, taken: int, expected: list[str], tmp_path: Path
) -> None:
    source, outcome, shortage = save(kernel.write(tmp_path / "core"), tmp_path / "out", room, 1, 31)
    assert (shortage, outcome.level, steps(source)) == (None, taken, expected)
    verify(tmp_path / "out")
    with DiskdumpReader(tmp_path / "out") as dump:
        assert dump.header.dump_level == taken
        assert (dump.page(CACHE.start) is not None) == (taken == 1)


def test_what_matters_first_is_written_when_nothing_else_fits(kernel: FakeKernel, tmp_path: Path) -> None:
    source, outcome, shortage = save(kernel.write(tmp_path / "core"), tmp_path / "out", 150_000, 1, 31)
    assert shortage is not None
    assert "room for 146.5K only" in shortage
    assert steps(source)[:2] == ["not-level-1", "not-level-31"]
    assert steps(source)[-1] in ("critical", "critical-and-slab")
    assert all(step.reason for step in source.steps)
    assert 0 < outcome.pages["written"] < outcome.pages["kept"]
    assert (tmp_path / "out").stat().st_size < 1 << 20
    with DiskdumpReader(tmp_path / "out") as dump:
        assert dump.incomplete
        assert dump.page_count == outcome.pages["written"]
        assert dump.page(kernel.top // PAGE) == bytes(kernel.memory[kernel.top : kernel.top + PAGE])


def test_without_room_for_headers_the_log_is_all(kernel: FakeKernel, tmp_path: Path) -> None:
    core = kernel.write(tmp_path / "core")
    out = tmp_path / "out"

    class Full(SmallDisk):
        def reserve(self, size: int) -> None:
            raise NoSpaceError("no room at all")

    outcome = Outcome()
    with Source.open(core) as source, Full(os.open(out, os.O_RDWR | os.O_CREAT, 0o600), str(out)) as file:
        with pytest.raises(NoSpaceError):
            write_dump(source, file, outcome, DumpOptions(levels=(31,)), Progress(PHASES, stream=io.StringIO()))
        assert source.steps[-1] == Step("log-only", "not even the headers of a dump fit: no room at all")
    assert outcome.size_bytes == 0


@pytest.mark.parametrize(("kept", "percent"), [(60 << 20, 0), (0, 95)])
def test_room_that_is_to_stay_free_is_no_room(kernel: FakeKernel, kept: int, percent: int, tmp_path: Path) -> None:
    options = DumpOptions(levels=(1, 31), codec=Codec.ZSTD, keep_free_bytes=kept, keep_free_percent=percent)
    out = tmp_path / "out"
    with (
        Source.open(kernel.write(tmp_path / "core")) as source,
        SmallDisk(os.open(out, os.O_RDWR | os.O_CREAT, 0o600), str(out)) as file,
    ):
        file.room = 64 << 20
        write_dump(source, file, Outcome(), options, Progress(PHASES, stream=io.StringIO()))
    assert steps(source) == ["not-level-1", "level-31"]


@pytest.mark.parametrize(("flags", "mapcount", "rule"), [(1 << 4, -1, "cache"), (0, ~0x80, "free")])
def test_a_rule_that_leaves_out_what_must_stay_goes_off(
    kernel: FakeKernel, flags: int, mapcount: int, rule: str, tmp_path: Path
) -> None:
    """Struct pages that lie about the page with the top of the page tables."""
    pfn = kernel.top // PAGE
    kernel.pages[pfn, 0] = flags
    kernel.pages[pfn, 6] = mapcount & 0xFFFFFFFF
    source, outcome, shortage = save(kernel.write(tmp_path / "core"), tmp_path / "out", 64 << 20, 31)
    assert shortage is None
    (step,) = source.steps
    assert step.step == "less-filtered"
    assert f"the rule for {rule} pages is off" in step.reason
    assert f"pfn {pfn:#x}" in step.reason
    with DiskdumpReader(tmp_path / "out") as dump:
        assert dump.page(pfn) is not None
        assert (dump.page(CACHE.start) is not None) == (rule == "cache")
    assert outcome.pages["written"] == outcome.pages["kept"]


def test_without_page_tables_everything_is_kept_and_said(kernel: FakeKernel, tmp_path: Path) -> None:
    kernel.missing = {"SYMBOL(init_top_pgt)"}
    source, outcome, _ = save(kernel.write(tmp_path / "core"), tmp_path / "out", 64 << 20, 31)
    assert steps(source) == ["everything"]
    assert outcome.pages["written"] == outcome.pages["total"] == PAGES


COSTS = {
    -5: Cost(bytes_per_page=2400, seconds_per_page=5e-6),
    -1: Cost(bytes_per_page=2100, seconds_per_page=8e-6),
    1: Cost(bytes_per_page=1900, seconds_per_page=12e-6),
    3: Cost(bytes_per_page=1850, seconds_per_page=16e-6),
}


@pytest.mark.parametrize(
    ("rate", "threads", "level"), [(10e6, 1, 3), (150e6, 1, 1), (10e9, 1, -5), (1e9, 4, -1), (270e6, 1, -1)]
)
def test_the_level_follows_the_bottleneck(rate: float, threads: int, level: int) -> None:
    assert best_level(COSTS, bytes_per_second=rate, threads=threads) == level


def test_numbers_of_a_classification_that_lost_nothing(kernel: FakeKernel, tmp_path: Path) -> None:
    with Source.open(kernel.write(tmp_path / "core")) as source:
        found = source.classify(31)
        assert not found.lost
        assert not np.any(found.slab & ~found.present)
        assert not source.steps
