# SPDX-License-Identifier: GPL-2.0-or-later
"""The pages of our dumps are makedumpfile's pages: the same page frames, the same bytes."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import MAKEDUMPFILE_READS, collect, cores
from lab import makedumpfile, pages, small, tools
from lab.aptroot import run
from lab.vmcore import Vmcore

# 0 and 1 filter nothing but zero pages, 31 everything; the others are each rule by itself.
LEVELS = [0, 1, 2, 4, 8, 16, 31]
BALLOON_PAGES = small.BALLOON_MIB * 256


@MAKEDUMPFILE_READS
@pytest.mark.parametrize("level", LEVELS)
def test_same_pages_as_makedumpfile(core: Vmcore, level: int, tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    options = ["-d", str(level), *(["-z"] if level == 31 else [])]
    collect(*options, core.path, ours)
    makedumpfile.filtered(core, theirs, *options)
    found = pages.compare(ours, theirs)
    assert found.common > 10_000
    assert found.differing == []
    if core.kernel == "5.10" and level in (0, 1):
        # Without PG_hwpoison it does not look at struct pages here, and so not for pages that a balloon took.
        assert len(found.missing) == BALLOON_PAGES
    else:
        assert found.missing == []
    if core.kernel == "7":
        tails_that_are_not_anonymous(ours, core, found.extra)
    else:
        # More pages than makedumpfile's would be allowed, up to a hundredth; these kernels need none.
        assert found.extra == []


def tails_that_are_not_anonymous(dump: Path, core: Vmcore, extra: list[int]) -> None:
    """The newest makedumpfile, 1.7.8, knows no compound_info (7.1): it takes tails of slabs, of large kmallocs and of
    cached folios for anonymous pages and leaves them out. drgn knows better."""
    for page in tools.read_with("drgn", dump, core.vmlinux, "pages", *map(str, extra))["pages"]:
        assert page["tail"], page
        assert page["slab"] or page["mapping"] % 2 == 0, page


@pytest.mark.parametrize("option", ["-c", None])
def test_every_codec_holds_the_same_pages(core: Vmcore, dump: Path, option: str | None, tmp_path: Path) -> None:
    other = tmp_path / "other"
    collect("-d", "31", *([option] if option else []), core.path, other)
    found = pages.compare(other, dump)
    assert (found.missing, found.extra, found.differing) == ([], [], [])
    assert found.common > 4_000  # of 16 KiB; of 4 KiB there are more


def test_any_number_of_threads_gives_the_same_bytes(any_core: Vmcore, tmp_path: Path) -> None:
    outs = [tmp_path / str(count) for count in (1, 2, 5)]
    for out in outs:
        # A level that is not given follows the speed of this machine, which changes from run to run.
        collect("-d", "31", "-z", "--compression-level", "1", "--num-threads", out.name, any_core.path, out)
    first, *others = [out.read_bytes() for out in outs]
    assert all(other == first for other in others)


# It cannot filter 7.x (see above); arm64's would need its notes changed within the dump.
@cores(lambda kernel, _: kernel != "7" and "arm64" not in kernel)
def test_makedumpfile_reads_and_refilters_our_dump(dump: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    run([*tools.program("makedumpfile"), "-c", "-d", "31", str(dump), str(again)], timeout=300)
    found = pages.compare(again, dump)
    assert (found.missing, found.extra, found.differing) == ([], [], [])
