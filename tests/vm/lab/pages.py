# SPDX-License-Identifier: GPL-2.0-or-later
"""A reader of kdump-compressed dumps that shares nothing with kdumpd, to compare two dumps page by page.

After makedumpfile's diskdump_mod.h and crash's diskdump.h: header, sub header, two bitmaps, descriptors, pages.
"""

from __future__ import annotations

import dataclasses
import mmap
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import lzo
import numpy as np
import snappy
import zstandard

_PLACE_BLOCK_SIZE, _PLACE_SUB_SIZE, _PLACE_BITMAP_BLOCKS = 428, 432, 436
_PLACE_MAX_MAPNR_64 = 96  # in the sub header, from header version 6 on
_DESCRIPTOR = struct.Struct("<qIIQ")
_ZLIB, _LZO, _SNAPPY, _ZSTD = 0x1, 0x2, 0x4, 0x20


class Dump:
    """The pages of a dump. `pfns` holds the numbers of all page frames in it, ascending."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        assert self._map[:8] == b"KDUMP   ", f"{path} is not a kdump-compressed dump"
        self.version, self.page_size = self._u32(8), self._u32(_PLACE_BLOCK_SIZE)
        assert self.version >= 6, f"{path}: header version {self.version}"
        sub, blocks = self._u32(_PLACE_SUB_SIZE), self._u32(_PLACE_BITMAP_BLOCKS)
        (self.max_mapnr,) = struct.unpack_from("<Q", self._map, self.page_size + _PLACE_MAX_MAPNR_64)
        start, half = (1 + sub) * self.page_size, blocks * self.page_size // 2
        self.memory = self._bits(start, half)
        self.pfns = self._bits(start + half, half)
        self._descriptors = start + 2 * half
        self._zstd = zstandard.ZstdDecompressor()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._map.close()

    def _u32(self, place: int) -> int:
        value: int = struct.unpack_from("<I", self._map, place)[0]
        return value

    def _bits(self, start: int, size: int) -> np.ndarray:
        packed = np.frombuffer(self._map[start : start + size], np.uint8)
        return np.flatnonzero(np.unpackbits(packed, bitorder="little")[: self.max_mapnr])

    def page(self, index: int) -> bytes:
        """The content of the page frame `pfns[index]`."""
        place = self._descriptors + index * _DESCRIPTOR.size
        offset, size, flags, _ = _DESCRIPTOR.unpack_from(self._map, place)
        data = self._map[offset : offset + size]
        if flags & _ZLIB:
            data = zlib.decompress(data)
        elif flags & _LZO:
            data = lzo.decompress(data, False, self.page_size)
        elif flags & _SNAPPY:
            data = snappy.uncompress(data)
        elif flags & _ZSTD:
            data = self._zstd.decompress(data, max_output_size=self.page_size)
        assert len(data) == self.page_size, f"{self.path}: page frame {self.pfns[index]:#x} has {len(data)} bytes"
        return data


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """How a dump differs from a reference; all but `common` are lists of page frame numbers."""

    common: int
    missing: list[int]
    extra: list[int]
    differing: list[int]


def compare(dump: Path, reference: Path) -> Difference:
    """Every page of `reference` is looked up in `dump` and compared byte by byte."""
    with Dump(dump) as ours, Dump(reference) as theirs:
        common, at, there = np.intersect1d(ours.pfns, theirs.pfns, assume_unique=True, return_indices=True)
        differing = [int(pfn) for pfn, left, right in zip(common, at, there, strict=True)
                     if ours.page(int(left)) != theirs.page(int(right))]  # fmt: skip
        return Difference(
            common=len(common),
            missing=np.setdiff1d(theirs.pfns, ours.pfns).tolist(),
            extra=np.setdiff1d(ours.pfns, theirs.pfns).tolist(),
            differing=differing,
        )


def runs(pfns: list[int]) -> Iterator[str]:
    """The page frame numbers as ranges, to print."""
    for run in np.split(np.array(pfns), np.flatnonzero(np.diff(pfns) != 1) + 1) if pfns else []:
        yield f"{run[0]:#x}" if len(run) == 1 else f"{run[0]:#x}-{run[-1]:#x}"
