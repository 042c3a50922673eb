# SPDX-License-Identifier: GPL-2.0-or-later
"""Packs a batch of pages: zero pages are found all at once, what does not shrink is stored as it is.

What a page becomes depends on its own batch alone, and there on the group of 16 in which it lies: the dump is the
same however the batches are spread over threads.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from kdumpd.dumpfile.codecs import FAST, Buffer, Pack, packer
from kdumpd.dumpfile.diskdump import BLOCK_SIZE, Codec
from kdumpd.dumpfile.native import NativeCompressor, PageBuffer
from kdumpd.vmcore.arrays import NDArray, ints

GROUP = 16
# 256 bytes of a page, 8 from every 128.
_SAMPLE = 8
_STRIDE = 128
_SAMPLED = BLOCK_SIZE // _STRIDE * _SAMPLE
# Chi-square of the sampled bytes against all values being equally likely: 255 on average for random bytes, with a
# standard deviation of 22.6. Text and machine code are in the thousands.
_RANDOM_BELOW = 345.0


def zero_pages(pages: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Which of `pages`, shape (count, BLOCK_SIZE), hold nothing but zeros."""
    found: NDArray[np.bool_] = np.bitwise_or.reduce(pages.view(np.uint64), axis=1) == 0
    return found


def look_random(pages: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Which of `pages` no codec is likely to shrink, judged by a sixteenth of their bytes."""
    count = len(pages)
    sample = pages.reshape(count, BLOCK_SIZE // _STRIDE, _STRIDE)[:, :, :_SAMPLE].reshape(count, _SAMPLED)
    keys = sample.astype(np.intp) + (np.arange(count) * 256)[:, np.newaxis]
    seen = np.bincount(keys.ravel(), minlength=count * 256).reshape(count, 256)
    chi_square = (seen * seen).sum(axis=1) * (256.0 / _SAMPLED) - _SAMPLED
    found: NDArray[np.bool_] = chi_square < _RANDOM_BELOW
    return found


@dataclasses.dataclass(frozen=True, slots=True)
class PackedPages:
    """A batch of pages. `sizes` of 0 are zero pages; `parts` holds the bytes of all others, in their order."""

    parts: Sequence[Buffer]
    sizes: NDArray[np.uint32]
    flags: NDArray[np.uint32]

    @classmethod
    def of(cls, packed: PageBuffer, sizes: NDArray[np.uint32], flags: NDArray[np.uint32]) -> PackedPages:
        """The pages of a buffer, as Packing.pack leaves them, to which this refers."""
        filled = np.flatnonzero(sizes)
        view = packed.view
        parts = [view[at : at + size] for at, size in zip(ints(filled * BLOCK_SIZE), ints(sizes[filled]), strict=True)]
        return cls(parts, sizes, flags)

    def some(self, first: int, last: int) -> PackedPages:
        """The pages at positions [first, last)."""
        before, here = (int(np.count_nonzero(self.sizes[part])) for part in (slice(first), slice(first, last)))
        return PackedPages(self.parts[before : before + here], self.sizes[first:last], self.flags[first:last])


class _Compressor(Protocol):
    def pack(self, source: PageBuffer, target: PageBuffer, which: Sequence[int]) -> list[int]:
        """As NativeCompressor.pack."""


class Packing:
    """Packs batches with one codec at one level; for one thread."""

    def __init__(self, codec: Codec, level: int | None) -> None:
        """Raises UnsupportedError when a library for `codec` is missing."""
        self._codec = codec
        self._compressor = None if codec is Codec.RAW else _compressor(codec, FAST if level is None else level)

    def __call__(self, source: PageBuffer, target: PageBuffer, count: int) -> PackedPages:
        """The first `count` pages of `source`. What it returns refers to `target`."""
        return PackedPages.of(target, *self.pack(source, target, count))

    def pack(self, source: PageBuffer, target: PageBuffer, count: int) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
        """Packs the first `count` pages of `source`, each to the same place of `target`, where one that does not shrink
        is as it was. Their sizes and flags, as PackedPages has them."""
        filled = np.flatnonzero(~zero_pages(source.pages[:count]))
        if not len(filled):
            return np.zeros(count, dtype=np.uint32), np.zeros(count, dtype=np.uint32)
        sizes = np.zeros(count, dtype=np.uint64)
        sizes[filled] = BLOCK_SIZE
        compressor = self._compressor
        if compressor is None:
            if target is not source:
                target.pages[filled] = source.pages[filled]
            return sizes.astype(np.uint32), np.zeros(count, dtype=np.uint32)

        # The first page of each group tells whether it is worth trying the others.
        groups = filled // GROUP
        is_probe = np.ones(len(filled), dtype=np.bool_)
        np.not_equal(groups[1:], groups[:-1], out=is_probe[1:])
        probes, others = filled[is_probe], filled[~is_probe]
        tried = np.array(compressor.pack(source, target, ints(probes)), dtype=np.uint64)
        sizes[probes] = tried
        resisting = ~_shrunk(tried)
        if resisting.any():
            dense = np.zeros(-(-count // GROUP), dtype=np.bool_)
            dense[probes // GROUP] = resisting
            doubtful = dense[others // GROUP]
            suspects = others[doubtful]
            likely = suspects[~look_random(source.pages[suspects])]
            others = np.concatenate((others[~doubtful], likely))
        sizes[others] = compressor.pack(source, target, ints(others))

        shrunk = _shrunk(sizes)
        final = np.where(shrunk, sizes, np.uint64(0)).astype(np.uint32)
        raw = filled[~shrunk[filled]]
        if len(raw):
            final[raw] = BLOCK_SIZE
            target.pages[raw] = source.pages[raw]
        return final, shrunk * np.uint32(self._codec)


def _shrunk(sizes: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """An error of a library is 0 or a very large number; so is what it gave up."""
    return (sizes > 0) & (sizes < BLOCK_SIZE)


def try_zlib() -> None:
    """Opens all that packs for zlib and is installed, so that whoever makes the capture image sees what is needed."""
    for level in (FAST, FAST + 1):
        _compressor(Codec.ZLIB, level)


def _compressor(codec: Codec, level: int) -> _Compressor:
    """The fastest that there is. Raises UnsupportedError."""
    if codec is Codec.ZLIB and level == FAST:
        from kdumpd.dumpfile.isal import IsalCompressor

        with contextlib.suppress(OSError):
            return IsalCompressor()
    try:
        return NativeCompressor(codec, level)
    except OSError:
        # Python's module for the codec does the same, slower.
        return _PageByPage(packer(codec, level))


class _PageByPage:
    """What NativeCompressor does, by a function for one page."""

    def __init__(self, pack: Pack) -> None:
        self._pack = pack

    def pack(self, source: PageBuffer, target: PageBuffer, which: Sequence[int]) -> list[int]:
        """As NativeCompressor.pack."""
        sizes = []
        for at in (index * BLOCK_SIZE for index in which):
            packed = self._pack(source.view[at : at + BLOCK_SIZE])
            if len(packed) < BLOCK_SIZE:
                target.view[at : at + len(packed)] = packed
            sizes.append(len(packed))
        return sizes
