# SPDX-License-Identifier: GPL-2.0-or-later
"""Dumps of a kernel with pages of 16 KiB: each page is that of the raw vmcore, in every format.

makedumpfile 1.7.8 does not open this memory, so a reader of ELF cores that shares nothing with kdumpd is the judge of
what pages hold; test_judged_by_drgn.py is that of what was left out.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import collect, cores
from lab import pages, tools
from lab.aptroot import run
from lab.vmcore import Vmcore

LARGE = cores(lambda kernel, _: kernel == "6.12-arm64-16k")
PAGE = 16384
_EHDR = struct.Struct("<16sHHIQQQIHHHHHH")
_PHDR = struct.Struct("<IIQQQQQQ")
_PT_LOAD = 1


def memory(core: Path) -> Iterator[tuple[int, int, int]]:
    """Physical address, bytes and place in the file of each segment of a core, but for the kernel's text, which is
    in it twice."""
    with core.open("rb") as file:
        head = _EHDR.unpack(file.read(_EHDR.size))
        file.seek(head[5])
        table = [_PHDR.unpack(file.read(_PHDR.size)) for _ in range(head[10])]
    spans = [(paddr, size, offset) for kind, _, offset, _, paddr, size, _, _ in table if kind == _PT_LOAD]
    for paddr, size, offset in spans:
        if not any(low <= paddr and paddr + size <= low + more and size < more for low, more, _ in spans):
            yield paddr, size, offset


@pytest.fixture(scope="module")
def whole(core: Vmcore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The dump that leaves out nothing but what is broken or not there."""
    out = tmp_path_factory.mktemp("whole") / "vmcore"
    collect("-d", "0", "-c", core.path, out)
    return out


@LARGE
def test_every_page_is_that_of_the_vmcore(core: Vmcore, whole: Path) -> None:
    there = {}
    for paddr, size, offset in memory(core.path):
        assert paddr % PAGE == size % PAGE == 0
        there.update({(paddr + at) // PAGE: offset + at for at in range(0, size, PAGE)})
    with pages.Dump(whole) as read, core.path.open("rb") as file:
        assert read.page_size == PAGE
        assert read.memory.tolist() == sorted(there)
        assert len(read.pfns) > 30_000
        for index, pfn in enumerate(read.pfns.tolist()):
            file.seek(there[pfn])
            assert read.page(index) == file.read(PAGE), f"{pfn:#x}"


@LARGE
def test_what_is_kept_is_the_same_in_every_format(core: Vmcore, whole: Path, dump: Path, tmp_path: Path) -> None:
    found = pages.compare(dump, whole)
    assert found.common > 4_000
    assert (found.extra, found.differing) == ([], [])
    assert len(found.missing) > 20_000
    again, stream, elf, back = (tmp_path / name for name in ("again", "stream", "elf", "back"))
    collect("-d", "31", "-z", whole, again)  # filtered again
    collect("-F", "-d", "31", "-c", core.path, stream)
    collect("-z", stream, tmp_path / "unpacked")
    collect("-E", "-d", "31", "--num-threads", "1", core.path, elf)
    collect("-d", "31", "-l", elf, back)
    for other in (again, tmp_path / "unpacked", back):
        same = pages.compare(other, dump)
        assert (same.missing, same.extra, same.differing) == ([], [], [])
    assert "sysrq_handle_crash" in tools.read_with("drgn", elf, core.vmlinux)["panic_trace"]


@LARGE
def test_memory_usage_counts_pages_of_this_size(core: Vmcore, dump: Path) -> None:
    found = json.loads(collect("--mem-usage", "--json", core.path).stdout)
    with pages.Dump(dump) as read:
        assert found["page_size"] == read.page_size == PAGE
        assert (found["pages"]["total"], found["pages"]["kept"]) == (len(read.memory), len(read.pfns))
    assert run(["file", "--brief", str(dump)], timeout=60).startswith("Kdump compressed dump v6, system Linux")
