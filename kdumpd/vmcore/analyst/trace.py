# SPDX-License-Identifier: GPL-2.0-or-later
"""Reading the dead kernel's structures as an analyst's tool would, and remembering each page frame on the way.

What a walk reads is what the tool will read: the frames of the structures and those of the page tables that lead to
them. So nobody has to list frames by hand, and a walk that breaks off leaves the frames that it reached.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from kdumpd.vmcore.arrays import NDArray
from kdumpd.vmcore.machines import page_tables
from kdumpd.vmcore.memory import CrashedMemory
from kdumpd.vmcore.vmcoreinfo import Vmcoreinfo

Frames = NDArray[np.int64]

# A stage that is larger than this is no longer the part that matters first; the memory for it is bounded as well.
MAX_BYTES = 1 << 30


class _Recorded(CrashedMemory):
    """The memory of another core; the frames that are read are added to `frames`."""

    def __init__(self, core: CrashedMemory) -> None:
        self.path = core.path
        self.machine = core.machine
        self.notes_block = core.notes_block
        self.segments = core.segments
        self.extents = core.extents
        self.doubts = core.doubts
        self.page_shift = core.page_shift
        self.frames: set[int] = set()
        self._core = core

    def close(self) -> None:
        """The core belongs to somebody else."""

    def record(self, paddr: int, size: int) -> None:
        """Remembers the frames of a range."""
        self.frames.update(range(paddr >> self.page_shift, (paddr + size + self.page_size - 1) >> self.page_shift))

    def read(self, paddr: int, size: int) -> bytes:
        data = self._core.read(paddr, size)
        self.record(paddr, size)
        return data

    def view(self, paddr: int, size: int) -> memoryview:
        data = self._core.view(paddr, size)
        self.record(paddr, size)
        return data

    def read_pages(self, pfns: NDArray[np.int64], out: NDArray[np.uint8]) -> NDArray[np.int64]:
        bad = self._core.read_pages(pfns, out)
        self.frames.update(np.delete(pfns, bad).tolist())
        return bad


class Trace:
    """Kernel virtual memory that remembers what was read. Raises VmcoreError when there are no page tables."""

    def __init__(self, core: CrashedMemory, info: Vmcoreinfo) -> None:
        self._core = _Recorded(core)
        self.machine = core.machine
        self.tables = page_tables(self._core, info)

    def read(self, vaddr: int, size: int) -> bytes:
        """`size` bytes at `vaddr`. Raises VmcoreError when any of them is not there."""
        return self.tables.read(vaddr, size)

    def read_u64(self, vaddr: int) -> int:
        """An unsigned long at `vaddr`. Raises VmcoreError."""
        return self.tables.read_u64(vaddr)

    def read_u32(self, vaddr: int) -> int:
        """An unsigned int at `vaddr`. Raises VmcoreError."""
        return self.tables.read_u32(vaddr)

    def keep(self, vaddr: int, size: int) -> None:
        """Remembers what is mapped in [vaddr, vaddr + size), without reading it; at most MAX_BYTES."""
        for paddr, length in self.tables.runs(vaddr, min(size, MAX_BYTES)):
            if paddr is not None:
                self._core.record(paddr, length)

    def keep_frames(self, frames: Iterable[int]) -> None:
        """Remembers page frames that were found in another way."""
        self._core.frames.update(frames)

    def taken(self) -> Frames:
        """The frames remembered since the last call, ascending."""
        frames = np.fromiter(self._core.frames, dtype=np.int64, count=len(self._core.frames))
        frames.sort()
        self._core.frames.clear()
        return frames
