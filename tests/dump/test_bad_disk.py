# SPDX-License-Identifier: GPL-2.0-or-later
"""A core on a disk that really cannot be read: each page costs itself, and what it tells of others."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from bad_disk import bad_disk
from conftest import collect
from lab import pages
from lab.vmcore import Vmcore

from kdumpd.collector.source import Source
from kdumpd.vmcore.elfcore import ElfCore
from kdumpd.vmcore.memmap import MemoryMap

PAGE = 4096
COUNT = 5  # in the middle of the dump, the first two of them neighbours


@pytest.fixture(scope="module")
def whole(any_core: Vmcore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "vmcore"
    collect("-d", "31", "-z", any_core.path, out)
    return out


def place(core: ElfCore, pfn: int) -> int:
    """Where a page lies in the core."""
    return int(core._offsets(np.array([pfn], dtype=np.int64))[0])


def test_pages_on_bad_sectors_are_zero_and_named(any_core: Vmcore, whole: Path, tmp_path: Path) -> None:
    with pages.Dump(whole) as dump, ElfCore(any_core.path) as core:
        middle = len(dump.pfns) // 2
        neighbours = next(at for at in range(middle, len(dump.pfns)) if dump.pfns[at + 1] == dump.pfns[at] + 1)
        chosen = [neighbours, neighbours + 1, *range(neighbours + 100, neighbours + 100 + 50 * (COUNT - 2), 50)]
        bad = [int(dump.pfns[index]) for index in chosen]
        offsets = [place(core, pfn) for pfn in bad]
    with bad_disk(tmp_path / "disk", any_core.path, bad=offsets) as path:
        with path.open("rb", buffering=0) as file, pytest.raises(OSError, match="Input/output error"):
            file.seek(offsets[0])
            file.read(PAGE)
        said = json.loads(collect("-d", "31", "-z", "--json", path, tmp_path / "out").stdout)
    assert said["pages"]["unreadable"] == COUNT
    what, _, named = said["notes"][-1].partition(": pfn ")
    assert what == "pages that could not be read were saved as zeros"
    assert {int(pfn, 16) for pfn in named.split(", ")} == set(bad)
    with pages.Dump(tmp_path / "out") as found, pages.Dump(whole) as dump:
        assert np.array_equal(found.pfns, dump.pfns)
        differing = [index for index in range(len(dump.pfns)) if found.page(index) != dump.page(index)]
        assert set(differing) <= set(chosen)  # a page of zeros is the same without a disk
        assert not any(any(found.page(index)) for index in chosen)
    collect("--verify", tmp_path / "out")


def test_what_a_bad_sector_says_nothing_about_is_kept(any_core: Vmcore, whole: Path, tmp_path: Path) -> None:
    """A page of struct pages that cannot be read: nobody knows what the 64 pages are that it describes."""
    with Source.open(any_core.path) as source, ElfCore(any_core.path) as core, pages.Dump(whole) as dump:
        assert source.tables is not None
        kept = set(dump.pfns.tolist())
        size = source.info.size("page")
        assert size == 64
        for piece in MemoryMap(core, source.info, source.tables).pieces():
            first = piece.start_pfn + 4096
            pfns = range(first, first + PAGE // size)
            if not kept & set(pfns) and core.has(first) and piece.count > 5000:
                break
        paddr = source.tables.to_phys(piece.vaddr + 4096 * size)
        assert paddr is not None
        offset = place(core, paddr >> 12)
    with bad_disk(tmp_path / "disk", any_core.path, bad=[offset]) as path:
        collect("-d", "31", "-z", path, tmp_path / "out")
    with pages.Dump(tmp_path / "out") as found:
        now = set(found.pfns.tolist())
    assert kept <= now
    assert set(pfns) <= now
    assert len(now - kept) < 1 << 16


def test_a_core_that_is_cut_while_it_is_read(any_core: Vmcore, whole: Path, tmp_path: Path) -> None:
    """No SIGBUS, as there is no mapping; what is behind the cut is named, what is before it is there."""
    with pages.Dump(whole) as dump, ElfCore(any_core.path) as core:
        pfns = dump.pfns[len(dump.pfns) * 3 // 4 :]
        end = int(core._offsets(pfns).max()) - 64 * PAGE
        lost = {pfn for pfn in dump.pfns.tolist() if place(core, pfn) + PAGE > end}
    assert len(lost) > 3
    with bad_disk(tmp_path / "disk", any_core.path, end=end) as path:
        done = collect("-d", "31", "-z", "--json", path, tmp_path / "out")
    assert json.loads(done.stdout)["pages"]["unreadable"] == len(lost)
    with pages.Dump(tmp_path / "out") as found, pages.Dump(whole) as dump:
        assert set(dump.pfns.tolist()) <= set(found.pfns.tolist())
