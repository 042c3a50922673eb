# SPDX-License-Identifier: GPL-2.0-or-later
"""The rank of a page frame among the set bits of a bitmap: which descriptor is its own.

Only a count for each block of 4096 page frames is held, 2 bytes of every KiB of bitmap; the bits themselves are
fetched when they are asked for, from memory or from a file.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np

from kdumpd.errors import DumpFormatError
from kdumpd.vmcore.arrays import ONES, NDArray, ints

Bytes = NDArray[np.uint8]
_BLOCK = 512  # bytes of bitmap between two counts
_PAGES = _BLOCK * 8
_STEP = 1 << 18


class Ranks:
    """Ranks in the bitmap of `size` bytes that `fetch(offset, size)` gives, one bit a page frame, lowest first."""

    def __init__(self, size: int, fetch: Callable[[int, int], Bytes]) -> None:
        self._size = size
        self._fetch = fetch
        self._remembered: tuple[int, NDArray[np.bool_], NDArray[np.int64]] | None = None
        self._before = np.zeros(-(-size // _BLOCK) + 1, dtype=np.int64)
        for at in range(0, size, _STEP):
            bits = fetch(at, min(_STEP, size - at))
            if not bits.any():
                continue
            ones = ONES[bits]
            sums = np.add.reduceat(ones, np.arange(0, len(ones), _BLOCK), dtype=np.int64)
            first = at // _BLOCK
            self._before[first + 1 : first + 1 + len(sums)] = sums
        np.cumsum(self._before, out=self._before)

    @classmethod
    def of_array(cls, bits: Bytes) -> Ranks:
        """Ranks in a bitmap that is in memory."""
        return cls(len(bits), lambda offset, size: bits[offset : offset + size])

    def read_from(self, fetch: Callable[[int, int], Bytes]) -> None:
        """From now on the bits, the same as before, come from `fetch`."""
        self._fetch = fetch

    @property
    def count(self) -> int:
        """How many bits are set."""
        return int(self._before[-1])

    def find(self, pfns: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """For ascending `pfns`: how many set bits lie below each, and whether its own is set."""
        ranks = np.zeros(len(pfns), dtype=np.int64)
        there = np.zeros(len(pfns), dtype=np.bool_)
        ranks[pfns >= self._size * 8] = self.count
        inside = slice(*(int(each) for each in np.searchsorted(pfns, (0, self._size * 8))))
        blocks = pfns[inside] // _PAGES
        starts = np.flatnonzero(blocks[1:] != blocks[:-1]) + inside.start + 1
        bounds = [inside.start, *ints(starts), inside.stop] if len(blocks) else []
        for first, last in itertools.pairwise(bounds):
            block = int(pfns[first]) // _PAGES
            bits, below = self._block(block)
            here = pfns[first:last] - block * _PAGES
            there[first:last] = bits[here]
            ranks[first:last] = below[here]
        return ranks, there

    def _block(self, block: int) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
        """The bits of one block, and how many set bits of the bitmap lie below each. The last one is remembered:
        pages come in batches that are smaller than a block."""
        if self._remembered is None or self._remembered[0] != block:
            at = block * _BLOCK
            bits = np.unpackbits(self._fetch(at, min(_BLOCK, self._size - at)), bitorder="little")
            below = np.cumsum(bits, dtype=np.int64) - bits + self._before[block]
            self._remembered = block, bits.astype(np.bool_), below
        return self._remembered[1:]

    def of(self, pfns: NDArray[np.int64]) -> NDArray[np.int64]:
        """Ranks of ascending `pfns`. Raises DumpFormatError when one of them is not in the bitmap."""
        ranks, there = self.find(pfns)
        if not there.all():
            raise DumpFormatError(f"pfn {int(pfns[~there][0]):#x} is not among the pages to write")
        return ranks

    def select(self, ranks: NDArray[np.int64]) -> NDArray[np.int64]:
        """The page frames that have the ascending `ranks`, each below `count`."""
        pfns = np.zeros(len(ranks), dtype=np.int64)
        blocks = np.searchsorted(self._before, ranks, side="right") - 1
        starts = ints(np.flatnonzero(np.diff(blocks, prepend=-1)))
        for first, last in itertools.pairwise([*starts, len(ranks)]):
            block = int(blocks[first])
            bits, _ = self._block(block)
            pfns[first:last] = np.flatnonzero(bits)[ranks[first:last] - self._before[block]] + block * _PAGES
        return pfns
