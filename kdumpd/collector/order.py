# SPDX-License-Identifier: GPL-2.0-or-later
"""In which order pages are written: each kept page once, stage by stage, ascending within a stage."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from kdumpd.vmcore.arrays import NDArray

Bytes = NDArray[np.uint8]
Pfns = NDArray[np.int64]
_STEP = 1 << 13  # bytes of bitmap, 65,536 pages, looked at in one go


class Waiting:
    """The pages that are still to be written: those whose bit is set in `bits`, which is changed."""

    def __init__(self, bits: Bytes) -> None:
        self.bits = bits

    def take(self, pfns: Pfns) -> Pfns:
        """Those of ascending, unique `pfns` that still wait; they do not any more."""
        pfns = pfns[(pfns >= 0) & (pfns < len(self.bits) * 8)]
        places = pfns >> 3
        masks = np.left_shift(1, pfns & 7).astype(np.uint8)
        taken: Pfns = pfns[(self.bits[places] & masks) != 0]
        if len(pfns):
            firsts = np.flatnonzero(np.diff(places, prepend=-1))
            self.bits[places[firsts]] &= ~np.bitwise_or.reduceat(masks, firsts)
        return taken

    def take_marked(self, marked: Bytes) -> Iterator[Pfns]:
        """As `take`, for the pages of a bitmap, in ascending pieces."""
        for at in range(0, len(self.bits), _STEP):
            here = slice(at, at + _STEP)
            found = self.bits[here] & marked[here]
            if found.any():
                self.bits[here] &= ~found
                yield _pfns(found, at)

    def take_all(self) -> Iterator[Pfns]:
        """The rest, in ascending pieces."""
        for at in range(0, len(self.bits), _STEP):
            found = self.bits[at : at + _STEP]
            if found.any():
                yield _pfns(found, at)
                found[:] = 0


def _pfns(bits: Bytes, at: int) -> Pfns:
    found = np.flatnonzero(np.unpackbits(bits, bitorder="little")).astype(np.int64, copy=False)
    found += at * 8
    return found


def batches(pieces: Iterable[Pfns], size: int) -> Iterator[Pfns]:
    """`pieces`, ascending, as arrays of `size` page frames; only the last may be shorter."""
    left = np.zeros(0, dtype=np.int64)
    for piece in pieces:
        joined = np.concatenate((left, piece)) if len(left) else piece
        whole = len(joined) // size * size
        for first in range(0, whole, size):
            yield joined[first : first + size]
        left = joined[whole:]
    if len(left):
        yield left
