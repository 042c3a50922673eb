# SPDX-License-Identifier: GPL-2.0-or-later
"""A few hundred of the pages to be saved, packed to see how small they become and how long that takes."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping

import numpy as np

from kdumpd.dumpfile.diskdump import Codec
from kdumpd.dumpfile.native import PageBuffer
from kdumpd.dumpfile.packing import Packing
from kdumpd.dumpfile.ranks import Bytes, Ranks
from kdumpd.vmcore.arrays import unique
from kdumpd.vmcore.memory import CrashedMemory

_PLACES = 64
_ROW = 32 << 10  # bytes of pages; as neighbours are alike, they say less; as they lie together, they are read at once
# The levels of zstd among which the collector chooses: a tenth larger in two thirds of the time, and the reverse.
AUTO_LEVELS = (-1, 1, 3)
# A lower level must take less than this share of the time: a smaller dump is worth something, too.
_WORTH = 0.9


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Bytes, and seconds of one thread, that a page takes on average."""

    bytes_per_page: float
    seconds_per_page: float


class SampledPages:
    """Pages spread evenly over those of a bitmap."""

    def __init__(self, core: CrashedMemory, kept: Bytes) -> None:
        ranks = Ranks.of_array(kept)
        self._size = core.page_size
        self._in_a_row = max(1, _ROW // core.page_size)
        places = np.linspace(0, max(0, ranks.count - self._in_a_row), _PLACES, dtype=np.int64)
        chosen = unique((places[:, np.newaxis] + np.arange(self._in_a_row)).ravel())
        pfns = ranks.select(chosen[chosen < ranks.count])
        self.count = len(pfns)
        self._source = PageBuffer(max(1, self.count), page_size=self._size)
        self._target = PageBuffer(max(1, self.count), page_size=self._size)
        core.read_pages(pfns, self._source.pages[: self.count])

    def packed(self, codec: Codec, level: int | None) -> Cost:
        """How the pages fare at one level. Raises UnsupportedError when a library for `codec` is missing."""
        packing = Packing(codec, level, self._size)
        packing(self._source, self._target, min(self._in_a_row, self.count))  # the first calls are slow
        began = time.thread_time()
        found = packing(self._source, self._target, self.count)
        seconds = time.thread_time() - began
        pages = max(1, self.count)
        return Cost(bytes_per_page=int(found.sizes.sum(dtype=np.int64)) / pages, seconds_per_page=seconds / pages)


def best_level(costs: Mapping[int, Cost], *, bytes_per_second: float, threads: int) -> int:
    """The level with which `threads` that pack and a target that takes `bytes_per_second` are done first.

    Where two are nearly as fast, the higher one, for a smaller dump.
    """

    def seconds(level: int) -> float:
        return max(costs[level].seconds_per_page / threads, costs[level].bytes_per_page / bytes_per_second)

    best, *lower = sorted(costs, reverse=True)
    for level in lower:
        if seconds(level) < _WORTH * seconds(best):
            best = level
    return best
