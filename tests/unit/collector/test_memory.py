# SPDX-License-Identifier: GPL-2.0-or-later
"""The collector's memory does not grow with the machine's, but for the bitmaps, and these can go to the target."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from fake_kernel import OLD, PAGE, PAGES, FakeKernel

from kdumpd.collector import room
from kdumpd.collector.dump import PHASES, Outcome, check_dump, write_dump
from kdumpd.collector.options import DumpOptions
from kdumpd.collector.progress import Progress
from kdumpd.collector.source import Source
from kdumpd.dumpfile.diskdump import Codec
from kdumpd.dumpfile.reader import DiskdumpReader, verify
from kdumpd.targets.files import OutputFile

TOP = Path(__file__).resolve().parents[3]
SIXTEEN_TIB = 1 << 32  # page frames
LIMIT = 60 << 20


@pytest.fixture
def kernel() -> FakeKernel:
    kernel = FakeKernel(OLD)
    kernel.pages[PAGES // 2 :, 0] = 1 << 4
    kernel.memory[0x300 * PAGE : 0x340 * PAGE] = os.urandom(0x40 * PAGE)
    return kernel


def peak(core: Path, out: Path, threads: int) -> int:
    """Of the whole program, imports included, and of the processes that it started."""
    words = ["-z", "-d", "31", "--json", "--num-threads", str(threads), str(core), str(out)]
    done = subprocess.run(
        [sys.executable, "-m", "kdumpd.collector", *words],
        cwd=TOP,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    peak: int = json.loads(done.stdout)["peak_rss_bytes"]
    return peak


@pytest.mark.parametrize("threads", [1, 2])
def test_memory_is_flat_up_to_16_tib(kernel: FakeKernel, threads: int, tmp_path: Path) -> None:
    """Two machines, one of them with a page frame just below 16 TiB and a core file that is mostly a hole."""
    small = kernel.write(tmp_path / "small")
    large = kernel.write(tmp_path / "large", [(0, PAGES), (SIXTEEN_TIB - 512, SIXTEEN_TIB)])
    os.truncate(large, 260 << 30)
    peaks = [peak(core, core.with_suffix(".out"), threads) for core in (small, large)]
    # 8 MiB for the counts of pages per block of the bitmaps, which are the dump's index.
    assert peaks[0] <= LIMIT
    assert peaks[1] <= LIMIT + (16 << 20)
    with DiskdumpReader(large.with_suffix(".out")) as dump:
        assert dump.header.max_mapnr == SIXTEEN_TIB
        assert dump.page(SIXTEEN_TIB - 1) == bytes(PAGE)
        assert dump.page(0x300) == bytes(kernel.memory[0x300 * PAGE : 0x301 * PAGE])
    verify(large.with_suffix(".out"))


def test_bitmaps_on_the_target_make_the_same_dump(
    kernel: FakeKernel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    core = kernel.write(tmp_path / "core")
    options = DumpOptions(levels=(31,), codec=Codec.ZSTD, compression_level=1)
    folder = tmp_path / "folder"
    folder.mkdir()
    dumps = []
    for available in (1 << 40, 1000):
        monkeypatch.setattr(room, "available_memory", lambda available=available: available)
        out = folder / "out"
        outcome, quiet = Outcome(), Progress(PHASES, stream=io.StringIO())
        with Source.open(core) as source, OutputFile(os.open(out, os.O_RDWR | os.O_CREAT, 0o600), str(out)) as file:
            write_dump(source, file, outcome, options, quiet)
            check_dump(out, source, outcome, options, quiet)
            told = [note for note in source.notes if "kept on the target" in note]
        assert bool(told) == (available == 1000)
        dumps.append(out.read_bytes())
        assert [path.name for path in folder.iterdir()] == ["out"]
        out.unlink()
    assert dumps[0] == dumps[1]


def test_scratch_room_is_mapped_and_zero(tmp_path: Path) -> None:
    with OutputFile(os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT), "file") as file:
        mapped = file.scratch(10_000)
        assert mapped is not None
        bits = np.frombuffer(mapped, dtype=np.uint8)
        assert len(bits) == 10_000
        assert not bits.any()
        bits[5000] = 7
        assert mapped[5000] == 7
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
