# SPDX-License-Identifier: GPL-2.0-or-later
"""The classification pass alone: `scan.py CORE [TIMES]` prints seconds, memory map repeated TIMES (64 GiB to 1 TiB)."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from kdumpd.collector.source import Source
from kdumpd.vmcore.classify import classify
from kdumpd.vmcore.memmap import MemoryMap, Piece
from kdumpd.vmcore.memory import Extent
from kdumpd.vmcore.rules import rules_of


class Repeated:
    """A memory map, one copy behind the other: a machine of many times the size."""

    def __init__(self, memory_map: MemoryMap, times: int, pages: int) -> None:
        self._map, self._times, self._pages = memory_map, times, pages

    def blocks(self) -> Iterator[tuple[Piece, np.ndarray]]:
        for number in range(self._times):
            for piece, data in self._map.blocks():
                yield dataclasses.replace(piece, start_pfn=piece.start_pfn + number * self._pages), data


class Large:
    """As much of a core as `classify` needs, of many times the size."""

    holes: tuple[tuple[int, int], ...] = ()

    def __init__(self, extents: tuple[Extent, ...], times: int, pages: int) -> None:
        self.extents = tuple(
            dataclasses.replace(each, start=each.start + number * pages, end=each.end + number * pages)
            for number in range(times)
            for each in extents
        )
        self.max_pfn = self.extents[-1].end


def main() -> None:
    core, times = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 1
    with Source.open(core) as source:
        assert source.tables is not None
        # A whole number of the largest blocks, so that the copies do not share any.
        pages = -(-source.core.max_pfn // (1 << 18)) * (1 << 18)
        large = Large(source.core.extents, times, pages)
        rules = rules_of(source.info)
        began = time.perf_counter()
        memory_map = Repeated(MemoryMap(source.core, source.info, source.tables), times, pages)
        found = classify(large, memory_map, rules, 31)  # type: ignore[arg-type]
        print(f"{time.perf_counter() - began:.4f} {found.total} {found.kept_count}")


if __name__ == "__main__":
    main()
