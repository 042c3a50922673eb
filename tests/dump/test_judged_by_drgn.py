# SPDX-License-Identifier: GPL-2.0-or-later
"""Where makedumpfile is no judge: what was left out was free, cache, a user's, offline or broken, as drgn sees it.

makedumpfile 1.7.8 does not open arm64 with 52 bits at all, and on 7.x it leaves out pages that it should keep. drgn
reads the same struct pages by the kernel's DWARF; what their fields mean is written down here once more.
"""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any

import pytest
from conftest import collect, cores
from lab import makedumpfile, pages, small, tools
from lab.aptroot import LabError
from lab.vmcore import Vmcore

BUDDY, OFFLINE, SLAB, HUGETLB = 0xF0, 0xF1, 0xF5, 0xF4  # linux: include/linux/page-flags.h, enum pagetype, since 6.12
ORDERS = 12  # with pages of 16 KiB, one less with smaller ones
SAMPLE = 150
NEW = cores(lambda kernel, levels: kernel == "7" or ("arm64" in kernel and levels == 5))


def kinds(dump: Path, core: Vmcore, pfns: list[int]) -> dict[int, dict[str, Any]]:
    """What drgn says of these page frames; the struct pages have to be in the dump."""
    found: dict[int, dict[str, Any]] = {}
    for start in range(0, len(pfns), 1000):
        part = map(str, pfns[start : start + 1000])
        answer = tools.read_with("drgn", dump, core.vmlinux, "pages", *part)
        found.update({page["pfn"]: page for page in answer["pages"]})
    return found


def expendable(pfn: int, seen: dict[int, dict[str, Any]]) -> bool:
    """Whether level 31 may leave the page out."""
    page = seen[pfn]
    if page["mapcount"] >> 24 in (OFFLINE, HUGETLB) or page["hwpoison"]:
        return True
    if page["mapcount"] >> 24 == SLAB:
        return False
    if page["lru"] or page["mapping"] & 1:
        return True
    # The first page of a free block has its order; those behind it are not touched when it is freed.
    heads = ((order, seen[pfn >> order << order]) for order in range(ORDERS))
    return any(head["mapcount"] >> 24 == BUDDY and head["private"] >= order for order, head in heads)


@NEW
def test_what_is_left_out_may_be_left_out(core: Vmcore, tmp_path: Path) -> None:
    dump = tmp_path / "vmcore"
    collect("-d", "31", "-z", core.path, dump)
    with pages.Dump(dump) as read:
        kept = set(read.pfns.tolist())
        left_out = [pfn for pfn in read.memory.tolist() if pfn not in kept]
    assert len(left_out) > 10_000
    sample = random.Random(core.release).sample(left_out, SAMPLE)
    asked = sorted({pfn >> order << order for pfn in sample for order in range(ORDERS)})
    seen = kinds(dump, core, asked)
    assert [hex(pfn) for pfn in sample if not expendable(pfn, seen)] == []


@cores(lambda kernel, levels: kernel == "6.12-arm64" and levels == 5)
def test_makedumpfile_still_does_not_read_52_bits(core: Vmcore, tmp_path: Path) -> None:
    """The day it does, this kernel is to be compared like all others (MAKEDUMPFILE_READS)."""
    with pytest.raises(LabError, match=makedumpfile.UNREADABLE):
        makedumpfile.filtered(core, tmp_path / "theirs", "-d", "31")


@cores(lambda kernel, _: kernel in ("5.10", "7", "6.12-rt", "6.12-arm64", "6.12-arm64-16k"))
def test_broken_and_ballooned_pages_are_left_out_at_any_level(core: Vmcore, tmp_path: Path) -> None:
    everything, log = tmp_path / "vmcore", tmp_path / "log"
    collect("-d", "0", core.path, everything)
    collect("--dump-dmesg", core.path, log)
    poisoned = [int(pfn, 16) for pfn in re.findall(r"Injecting memory failure for pfn 0x([0-9a-f]+)", log.read_text())]
    assert len(poisoned) == (0 if core.kernel == "5.10" else 1)  # it is built without CONFIG_MEMORY_FAILURE
    with pages.Dump(everything) as read:
        balloon = (small.BALLOON_MIB << 20) // read.page_size
        gone = set(read.memory.tolist()) - set(read.pfns.tolist())
    assert set(poisoned) <= gone
    assert len(gone) == len(poisoned) + balloon
