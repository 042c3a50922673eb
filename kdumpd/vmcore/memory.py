# SPDX-License-Identifier: GPL-2.0-or-later
"""The memory of a dead machine, whatever file it comes from: by page frame, by physical address, with its notes.

All addresses here are physical. A pfn that no extent holds cannot be read; nothing is invented for it.
"""

from __future__ import annotations

import abc
import bisect
import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from kdumpd.errors import VmcoreError
from kdumpd.vmcore.arrays import NDArray
from kdumpd.vmcore.notes import NT_PRSTATUS, Note, parse_notes

PAGE_SHIFT = 12
PAGE_SIZE = 1 << PAGE_SHIFT  # of most machines, and the smallest that any has


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """One PT_LOAD: `filesz` bytes of the memory at `paddr`, mapped by the dead kernel at `vaddr`."""

    vaddr: int
    paddr: int
    offset: int
    filesz: int
    memsz: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Extent:
    """Pages [start, end) that lie one after the other in the file from `offset` on."""

    start: int
    end: int
    offset: int


def fill_range(bits: NDArray[np.uint8], start: int, end: int, *, present: bool = True) -> None:
    """Sets, or clears, the bits of the page frames [start, end)."""
    first, last = -(-start // 8), end // 8
    edges = (*range(start, first * 8), *range(last * 8, end)) if first <= last else range(start, end)
    if first <= last:
        bits[first:last] = 0xFF if present else 0
    for pfn in edges:
        mask = np.uint8(1 << (pfn & 7))
        bits[pfn >> 3] = bits[pfn >> 3] | mask if present else bits[pfn >> 3] & ~mask


class CrashedMemory(abc.ABC):
    """An open file with crashed memory. Use it as a context manager; not safe for several threads at once.

    Whoever derives from it sets the attributes before anything else is called. `machine` is the name that uname(2)
    has for the architecture, `extents` do not overlap and ascend, `holes` are ranges [start, end) of page frames that
    the machine had and that were left out when the file was written, `phys_base` is what the file itself says of it,
    `incomplete` whether pages are missing that it should have, by what it says or by where it ends, `doubts` are
    sentences on what the file says and was not believed. `descriptors` are the files that reading takes, for whoever
    closes all others.

    A page frame is `page_size` bytes, as on most machines until somebody says what the dead kernel has (`use_pages`).
    """

    path: Path
    machine: str
    notes_block: bytes
    segments: tuple[Segment, ...]
    extents: tuple[Extent, ...]
    holes: tuple[tuple[int, int], ...] = ()
    phys_base: int = 0
    incomplete: bool = False
    doubts: tuple[str, ...]
    descriptors: tuple[int, ...] = ()
    page_shift: int = PAGE_SHIFT

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def page_size(self) -> int:
        """Bytes of a page frame: 4096, 16384 or 65536."""
        return 1 << self.page_shift

    def use_pages(self, shift: int) -> None:
        """From now on a page frame is 2^`shift` bytes, if the file can be read that way: `page_shift` tells."""
        self.page_shift = shift

    @abc.abstractmethod
    def close(self) -> None:
        """Gives the file and its mappings back; views that are still held keep theirs."""

    @abc.abstractmethod
    def read(self, paddr: int, size: int) -> bytes:
        """`size` bytes at physical `paddr`. Raises VmcoreError when any of them is not in the file."""

    @abc.abstractmethod
    def view(self, paddr: int, size: int) -> memoryview:
        """Like `read`, without a copy where that can be had."""

    @abc.abstractmethod
    def read_pages(self, pfns: NDArray[np.int64], out: NDArray[np.uint8]) -> NDArray[np.int64]:
        """Copies the pages of ascending `pfns` into `out`, shape (len(pfns), page_size).

        Returns the positions in `pfns` of pages that could not be read; these are zero in `out`.
        """

    def has(self, pfn: int) -> bool:
        """Whether the page can be read."""
        try:
            self.read(pfn << self.page_shift, 1)
        except VmcoreError:
            return False
        return True

    def leave_out(self, kept: NDArray[np.uint8]) -> None:
        """Clears in `kept`, a bit a page frame, the pages that the machine had and the file has not."""
        for start, end in self.holes:
            fill_range(kept, start, end, present=False)

    def notes(self) -> Iterator[Note]:
        """The ELF notes, up to the first that does not fit into the note block."""
        return parse_notes(self.notes_block)

    def vmcoreinfo_note(self) -> Note | None:
        """The note that carries VMCOREINFO, or None."""
        return next((note for note in self.notes() if note.name == "VMCOREINFO"), None)

    def nr_cpus(self) -> int:
        """How many cpus left their registers (NT_PRSTATUS)."""
        return sum(note.name == "CORE" and note.kind == NT_PRSTATUS for note in self.notes())

    @functools.cached_property
    def max_pfn(self) -> int:
        """One above the highest page frame."""
        return max((*(extent.end for extent in self.extents), *(end for _, end in self.holes)), default=0)

    @functools.cached_property
    def _starts(self) -> list[int]:
        return [extent.start for extent in self.extents]

    def extent_at(self, pfn: int) -> Extent | None:
        """The extent that holds `pfn`, or None."""
        index = bisect.bisect_right(self._starts, pfn) - 1
        if index >= 0 and pfn < self.extents[index].end:
            return self.extents[index]
        return None
