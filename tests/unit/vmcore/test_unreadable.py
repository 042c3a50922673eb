# SPDX-License-Identifier: GPL-2.0-or-later
"""Memory that the core promises and cannot give: each such page is named, the others are read, nothing dies."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from fake_kernel import OLD, PAGE, PAGES, FakeKernel

from kdumpd.vmcore import elfcore
from kdumpd.vmcore.elfcore import ElfCore

BAD = {0x300, 0x301, 0x345, 0x3FF}


@pytest.fixture
def core(tmp_path: Path) -> Path:
    kernel = FakeKernel(OLD)
    for pfn in range(PAGES):
        kernel.memory[pfn * PAGE : pfn * PAGE + 2] = pfn.to_bytes(2, "little")
    return kernel.write(tmp_path / "core")


def numbers(pages: np.ndarray) -> list[int]:
    return pages[:, :2].copy().view("<u2").ravel().tolist()


def failing(offset_of: Callable[[int], int]) -> Callable[[int, Sequence[memoryview], int], int]:
    """A preadv for a disk with bad sectors: it gives what lies before the first, and an error at the first."""
    bad = sorted(offset_of(pfn) for pfn in BAD)
    real = os.preadv

    def preadv(fd: int, buffers: Sequence[memoryview], offset: int) -> int:
        (buffer,) = buffers
        stop = next((at for at in bad if at + PAGE > offset), offset + len(buffer))
        if stop <= offset:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(fd, [buffer[: stop - offset]], offset)

    return preadv


def test_bad_sectors_cost_their_pages_only(core: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with ElfCore(core) as memory:
        extent = memory.extent_at(0x300)
        assert extent is not None
        monkeypatch.setattr(elfcore.os, "preadv", failing(lambda pfn: extent.offset + (pfn - extent.start) * PAGE))
        pfns = np.arange(0x2F0, 0x400)
        out = np.full((len(pfns), PAGE), 0xEE, dtype=np.uint8)
        bad = memory.read_pages(pfns, out)
    assert {int(pfns[position]) for position in bad} == BAD
    assert numbers(out) == [0 if pfn in BAD else pfn for pfn in range(0x2F0, 0x400)]
    assert not out[bad].any()


def test_a_file_cut_while_it_is_read(core: Path) -> None:
    """A mapping of it would end the program with SIGBUS."""
    with ElfCore(core) as memory:
        first = np.arange(PAGES - 64, PAGES)
        out = np.empty((64, PAGE), dtype=np.uint8)
        assert not len(memory.read_pages(first, out))
        view = memory.view((PAGES - 1) * PAGE, 8)
        os.truncate(core, core.stat().st_size - 32 * PAGE - 100)
        bad = memory.read_pages(first, out)
        assert bad.tolist() == list(range(31, 64))
        assert numbers(out) == [*range(PAGES - 64, PAGES - 33), *[0] * 33]
        assert bytes(view[:2]) == (PAGES - 1).to_bytes(2, "little")


def test_holes_between_extents_are_bad(core: Path) -> None:
    with ElfCore(core) as memory:
        pfns = np.array([0, PAGES - 1, PAGES, PAGES + 5, 1 << 40])
        out = np.full((5, PAGE), 0xEE, dtype=np.uint8)
        assert memory.read_pages(pfns, out).tolist() == [2, 3, 4]
        assert not out[2:].any()


def test_a_core_that_was_cut_is_incomplete(core: Path) -> None:
    with ElfCore(core) as memory:
        assert not memory.incomplete
        assert not memory.doubts
    os.truncate(core, core.stat().st_size - 3 * PAGE + 100)
    with ElfCore(core) as memory:
        assert memory.incomplete
        assert any(f"cut short: {3 * PAGE - 100} bytes" in doubt for doubt in memory.doubts)
        assert not memory.has(PAGES - 1)
