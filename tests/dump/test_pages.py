# SPDX-License-Identifier: GPL-2.0-or-later
"""The pages of our dumps are makedumpfile's pages: the same page frames, the same bytes."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import collect
from lab import pages, tools
from lab.aptroot import run
from lab.vmcore import Vmcore

# 0 and 1 filter nothing but zero pages, 31 everything; the others are each rule by itself.
LEVELS = [0, 1, 2, 4, 8, 16, 31]


@pytest.mark.parametrize("level", LEVELS)
def test_same_pages_as_makedumpfile(core: Vmcore, level: int, tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    collect("-d", str(level), "-z", core.path, ours)
    run([*tools.program("makedumpfile"), "-z", "-d", str(level), str(core.path), str(theirs)], timeout=300)
    found = pages.compare(ours, theirs)
    assert found.common > 10_000
    assert (found.missing, found.differing) == ([], [])
    # More pages than makedumpfile's would be allowed, up to a hundredth; these kernels need none.
    assert found.extra == []


@pytest.mark.parametrize("option", ["-c", None])
def test_every_codec_holds_the_same_pages(core: Vmcore, dump: Path, option: str | None, tmp_path: Path) -> None:
    other = tmp_path / "other"
    collect("-d", "31", *([option] if option else []), core.path, other)
    found = pages.compare(other, dump)
    assert (found.missing, found.extra, found.differing) == ([], [], [])
    assert found.common > 10_000


def test_any_number_of_threads_gives_the_same_bytes(any_core: Vmcore, tmp_path: Path) -> None:
    outs = [tmp_path / str(count) for count in (1, 2, 5)]
    for out in outs:
        collect("-d", "31", "-z", "--num-threads", out.name, any_core.path, out)
    first, *others = [out.read_bytes() for out in outs]
    assert all(other == first for other in others)


def test_makedumpfile_reads_and_refilters_our_dump(dump: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    run([*tools.program("makedumpfile"), "-c", "-d", "31", str(dump), str(again)], timeout=300)
    found = pages.compare(again, dump)
    assert (found.missing, found.extra, found.differing) == ([], [], [])
