# SPDX-License-Identifier: GPL-2.0-or-later
"""Where pages lie in an ELF core file that leaves pages out: runs of kept pages, and program headers over them.

A PT_LOAD whose p_memsz is above its p_filesz ends in a hole. A short hole between two runs may be filled with zeros
instead, since readers search all program headers for each address: as few as needed to keep their number bounded.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator

import numpy as np

from kdumpd.vmcore.arrays import NDArray, ints
from kdumpd.vmcore.memory import PAGE_SIZE, Segment

Bytes = NDArray[np.uint8]
Pfns = NDArray[np.int64]

# crash(8) looks at 40 bytes for each, one after the other: this many fit into a second-level cache.
MOST_RUNS = 1 << 14
# makedumpfile fills every hole that is shorter than this, so any reader copes with the result.
LONGEST_FILLED = 256
_STEP = 1 << 16  # bytes of bitmap looked at in one go


@dataclasses.dataclass(frozen=True, slots=True)
class Runs:
    """Ascending runs [starts, ends) of page frames that lie one behind the other in the file."""

    starts: Pfns
    ends: Pfns

    @classmethod
    def of(cls, kept: Bytes, most: int = MOST_RUNS, longest: int = LONGEST_FILLED) -> Runs:
        """The runs of the bitmap `kept`; holes of up to `longest` pages are filled where there are more than `most`."""
        starts, ends = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
        filled = 0
        last = 0
        for at in range(0, len(kept), _STEP):
            bits = np.unpackbits(kept[at : at + _STEP], bitorder="little").view(np.int8)
            changes = np.flatnonzero(np.diff(bits, prepend=np.int8(last))) + at * 8
            rises = bits[changes - at * 8] == 1
            starts, ends = np.concatenate((starts, changes[rises])), np.concatenate((ends, changes[~rises]))
            last = int(bits[-1])
            if len(ends) > most and filled < longest:
                filled = min(longest, 4 * filled or 1)
            if filled:
                starts, ends = _fill(starts, ends, filled)
        if last:
            ends = np.append(ends, len(kept) * 8)
        return cls(*_fill(starts, ends, filled))

    def first_page(self) -> Pfns:
        """For each run, the number of pages of all runs before it."""
        sizes: Pfns = self.ends - self.starts
        before: Pfns = np.cumsum(sizes) - sizes
        return before

    @property
    def pages(self) -> int:
        """Pages of all runs, those of filled holes included."""
        return int((self.ends - self.starts).sum())


def _fill(starts: Pfns, ends: Pfns, longest: int) -> tuple[Pfns, Pfns]:
    """Joins runs with at most `longest` pages between them; the last run may have no end yet."""
    gaps = starts[1:] - ends[: len(starts) - 1]
    keep = gaps > longest
    starts = starts[np.append(np.ones(min(1, len(starts)), dtype=np.bool_), keep)]
    return starts, np.concatenate((ends[: len(keep)][keep], ends[len(keep) :]))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """One program header. `page` is where its first byte lies: pages behind the start of the data, and `inside` it."""

    vaddr: int
    paddr: int
    page: int
    inside: int
    filesz: int
    memsz: int


def pieces(segments: Iterable[Segment], runs: Runs, page_size: int = PAGE_SIZE) -> Iterator[Piece]:
    """The program headers for `segments`, each cut at its holes. Segments that overlap share their pages."""
    before = runs.first_page()
    for segment in segments:
        end = segment.paddr + segment.memsz
        first, last = segment.paddr // page_size, -(-end // page_size)
        low, high = (int(each) for each in np.searchsorted(runs.ends, (first + 1, last + 1)))
        if high < len(runs.starts) and int(runs.starts[high]) < last:
            high += 1
        begins = [max(first, each) for each in ints(runs.starts[low:high])]
        stops = [min(last, each) for each in ints(runs.ends[low:high])]
        pages = [page + begin - start for page, begin, start in
                 zip(ints(before[low:high]), begins, ints(runs.starts[low:high]), strict=True)]  # fmt: skip
        if not begins or begins[0] > first:
            begins, stops, pages = [first, *begins], [first, *stops], [0, *pages]
        for index, (begin, stop, page) in enumerate(zip(begins, stops, pages, strict=True)):
            until = begins[index + 1] if index + 1 < len(begins) else last
            paddr = max(segment.paddr, begin * page_size)
            yield Piece(
                vaddr=segment.vaddr + paddr - segment.paddr if segment.vaddr else 0,
                paddr=paddr,
                page=page,
                inside=paddr - begin * page_size,
                filesz=max(0, min(end, stop * page_size) - paddr),
                memsz=min(end, until * page_size) - paddr,
            )
