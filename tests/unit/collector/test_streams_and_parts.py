# SPDX-License-Identifier: GPL-2.0-or-later
"""Streams become dumps again as far as they came; parts become one dump, and only when all are there."""

from __future__ import annotations

import itertools
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from fake_kernel import NEW, PAGE, PAGES, FakeKernel
from hypothesis import given, settings
from hypothesis import strategies as st
from test_refilter import pages

from kdumpd.collector.__main__ import main
from kdumpd.collector.verbs.split import parts
from kdumpd.dumpfile.diskdump import Status
from kdumpd.dumpfile.reader import DiskdumpReader
from kdumpd.vmcore.elfcore import ElfCore

TOP = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def core(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A vmcore with some noise in it."""
    kernel = FakeKernel(NEW)
    chance = random.Random(11)
    for pfn in range(3000, 3900, 4):
        kernel.memory[pfn * PAGE : (pfn + 1) * PAGE] = chance.randbytes(PAGE)
    return kernel.write(tmp_path_factory.mktemp("core") / "core")


def collect(*words: str | Path, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "kdumpd.collector", *map(str, words), "--message-level", "6"],
        cwd=TOP, input=stdin, capture_output=True, timeout=180, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def stream(core: Path) -> bytes:
    """The dump of the core as a stream through a pipe."""
    done = collect("-F", "-d", "1", "-z", core)
    assert done.returncode == 0
    return done.stdout


def test_a_stream_becomes_the_dump_it_carries(core: Path, stream: bytes, tmp_path: Path) -> None:
    done = collect("-R", tmp_path / "out", stdin=stream)
    assert done.returncode == 0, done.stderr
    assert main(["-d", "1", "-z", "--message-level", "4", str(core), str(tmp_path / "plain")]) == 0
    assert pages(tmp_path / "out") == pages(tmp_path / "plain")
    # What follows the end, as on a raw device, is not looked at.
    done = collect("-R", tmp_path / "again", stdin=stream + b"old data" * 1000)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "again").read_bytes() == (tmp_path / "out").read_bytes()


def test_an_elf_stream_becomes_the_core_it_carries(core: Path, tmp_path: Path) -> None:
    flat = collect("-E", "-F", "-d", "1", core)
    (tmp_path / "flat").write_bytes(flat.stdout)
    assert b"is a flattened ELF core" in collect(tmp_path / "flat", tmp_path / "none").stderr
    assert collect("--verify", tmp_path / "flat").returncode == 0
    (tmp_path / "flat").write_bytes(flat.stdout[:-1])
    assert b"is incomplete" in collect("--verify", tmp_path / "flat").stderr
    done = collect("-R", tmp_path / "out", stdin=flat.stdout)
    assert done.returncode == 0, done.stderr
    with ElfCore(tmp_path / "out") as ours, ElfCore(core) as theirs:
        assert all(ours.read(pfn * PAGE, PAGE) == theirs.read(pfn * PAGE, PAGE) for pfn in range(PAGES))


def test_what_came_of_a_cut_stream_is_kept_and_is_no_success(stream: bytes, tmp_path: Path) -> None:
    opened = 0
    for size in [4096, 5000, *range(8192, len(stream), len(stream) // 8), len(stream) - 1]:
        done = collect("-R", tmp_path / "out", "-f", stdin=stream[:size])
        assert done.returncode == 1
        assert b"was cut after" in done.stderr
        assert not (tmp_path / "out").exists()
        partial = tmp_path / "out.incomplete"
        if size > 4096 + 200_000:
            with DiskdumpReader(partial) as dump:
                assert dump.header.status & Status.INCOMPLETE
                opened += 1
    assert opened > 2


@pytest.mark.parametrize("stdin", [b"", b"x", b"makedumpfile\0\0\0\0", b"\x7fELF" + bytes(5000), bytes(5000)])
def test_what_is_no_stream_leaves_nothing(stdin: bytes, tmp_path: Path) -> None:
    done = collect("-R", tmp_path / "out", stdin=stdin)
    assert done.returncode == 1
    assert done.stderr.startswith(b"kdumpd-collect: standard input ")
    assert os.listdir(tmp_path) == []


@settings(max_examples=200)
@given(st.sets(st.integers(0, 799)), st.integers(2, 9))
def test_parts_hold_equally_many_pages(kept: set[int], count: int) -> None:
    bits = np.zeros(800, dtype=np.uint8)
    bits[sorted(kept)] = 1
    found = parts(np.packbits(bits, bitorder="little"), 800, count)
    assert [found[0][0], found[-1][1]] == [0, 800]
    assert all(left[1] == right[0] for left, right in itertools.pairwise(found))
    sizes = [len([pfn for pfn in kept if start <= pfn < end]) for start, end in found]
    assert sum(sizes) == len(kept)
    assert max(sizes) - min(sizes) <= 1


@pytest.fixture(scope="module")
def split(core: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The dump of the core in three parts."""
    outs = [tmp_path_factory.mktemp("parts") / name for name in "abc"]
    assert main(["--split", "-d", "1", "-z", "--message-level", "4", str(core), *map(str, outs)]) == 0
    return outs


def test_parts_become_the_dump_they_are_of(core: Path, split: list[Path], tmp_path: Path) -> None:
    assert main(["--verify", "--message-level", "4", *map(str, split)]) == 0
    for path in split:
        with DiskdumpReader(path) as dump:
            assert dump.header.split
            assert dump.page_count in (PAGES // 3, PAGES // 3 + 1)
    b, c, a = split[1], split[2], split[0]
    assert main(["--reassemble", "--message-level", "4", str(b), str(c), str(a), str(tmp_path / "out")]) == 0
    assert main(["-d", "1", "-z", "--message-level", "4", str(core), str(tmp_path / "plain")]) == 0
    assert pages(tmp_path / "out") == pages(tmp_path / "plain")


def test_a_part_opens_alone_and_says_what_it_is(split: list[Path], tmp_path: Path) -> None:
    done = collect("-d", "1", "-z", split[2], tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert b"is a part of a split dump" in done.stderr
    assert set(pages(tmp_path / "out")) == set(pages(split[2]))


def test_parts_that_do_not_fit_are_one_sentence(core: Path, split: list[Path], tmp_path: Path) -> None:
    a, b, c = split
    assert main(["-d", "1", "-z", "--message-level", "4", str(core), str(tmp_path / "whole")]) == 0
    other = FakeKernel(NEW).write(tmp_path / "other-core", [(0, 3000)])
    assert main(["--split", "--message-level", "4", str(other), str(tmp_path / "x"), str(tmp_path / "y")]) == 0
    (tmp_path / "cut").write_bytes(a.read_bytes()[:9000])
    before = sorted(os.listdir(tmp_path))
    for names, sentence in [
        ([a, b], "the last part is missing"),
        ([b, c], "the first part is missing"),
        ([a, c], "pages are missing between"),
        ([a, b, b, c], "are both in"),
        ([a, tmp_path / "whole"], "is not a part of a split dump"),
        ([a, tmp_path / "y"], "are of different dumps: "),
        ([a, b, core], "is not a kdump-compressed dump"),
        ([tmp_path / "cut", b, c], "ends inside"),
    ]:
        done = collect("--reassemble", *names, tmp_path / "out")
        assert done.returncode == 1
        assert sentence in done.stderr.decode()
        assert sorted(os.listdir(tmp_path)) == before


def test_an_incomplete_part_makes_an_incomplete_dump(split: list[Path], tmp_path: Path) -> None:
    a, b, c = split
    raw = bytearray(b.read_bytes())
    raw[424] |= int(Status.INCOMPLETE)
    (tmp_path / "b").write_bytes(raw)
    done = collect("--reassemble", a, tmp_path / "b", c, tmp_path / "out")
    assert done.returncode == 1
    assert b"b is incomplete; " in done.stderr
    with DiskdumpReader(tmp_path / "out.incomplete") as dump:
        assert dump.incomplete
        assert all(dump.page(pfn) is not None for pfn in dump.pfns().tolist())


def test_a_result_for_programs(core: Path, tmp_path: Path) -> None:
    done = collect("--json", "-d", "1", "-z", core, tmp_path / "out")
    found = json.loads(done.stdout)
    assert found["result"] == "complete"
    assert found["size_bytes"] == (tmp_path / "out").stat().st_size
    assert (found["pages"]["total"], found["level"], found["compression"]) == (PAGES, 1, "zstd")
    done = collect("--json", "-d", "1", "-z", core, tmp_path / "out")
    assert (done.returncode, json.loads(done.stdout)["result"]) == (2, "failed")
    done = collect("--json", "--dry-run", "-d", "1", core)
    assert json.loads(done.stdout)["result"] == "dry-run"
    done = collect("--json", "-F", "-z", core)
    assert done.stdout.startswith(b"makedumpfile\0")
    assert json.loads(done.stderr.splitlines()[-1])["out"] == "standard output"
