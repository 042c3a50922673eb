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
# Of a page 8 bytes from every 128.
_SAMPLE = 8
_STRIDE = 128
# Chi-square of the sampled bytes against all values being equally likely: 255 on average for random bytes, with a
# standard deviation of 22.6. Text and machine code are in the thousands.
_RANDOM_BELOW = 345.0


def zero_pages(pages: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Which of `pages`, shape (count, page size), hold nothing but zeros."""
    found: NDArray[np.bool_] = np.bitwise_or.reduce(pages.view(np.uint64), axis=1) == 0
    return found


def look_random(pages: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Which of `pages` no codec is likely to shrink, judged by a sixteenth of their bytes."""
    count, page_size = pages.shape
    sampled = page_size // _STRIDE * _SAMPLE
    sample = pages.reshape(count, page_size // _STRIDE, _STRIDE)[:, :, :_SAMPLE].reshape(count, sampled)
    keys = sample.astype(np.intp) + (np.arange(count) * 256)[:, np.newaxis]
    seen = np.bincount(keys.ravel(), minlength=count * 256).reshape(count, 256)
    chi_square = (seen * seen).sum(axis=1) * (256.0 / sampled) - sampled
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
        parts = [
            view[at : at + size] for at, size in zip(ints(filled * packed.page_size), ints(sizes[filled]), strict=True)
        ]
        return cls(parts, sizes, flags)

    def some(self, first: int, last: int) -> PackedPages:
        """The pages at positions [first, last)."""
        before, here = (int(np.count_nonzero(self.sizes[part])) for part in (slice(first), slice(first, last)))
        return PackedPages(self.parts[before : before + here], self.sizes[first:last], self.flags[first:last])


class _Compressor(Protocol):
    def pack(self, source: PageBuffer, target: PageBuffer, which: Sequence[int]) -> list[int]:
        """As NativeCompressor.pack."""


class Packing:
    """Packs batches of pages of one size with one codec at one level; for one thread."""

    def __init__(self, codec: Codec, level: int | None, page_size: int = BLOCK_SIZE) -> None:
        """Raises UnsupportedError when a library for `codec` is missing."""
        self._codec = codec
        self._page_size = page_size
        self._compressor = (
            None if codec is Codec.RAW else _compressor(codec, FAST if level is None else level, page_size)
        )

    def __call__(self, source: PageBuffer, target: PageBuffer, count: int) -> PackedPages:
        """The first `count` pages of `source`. What it returns refers to `target`."""
        return PackedPages.of(target, *self.pack(source, target, count))

    def pack(self, source: PageBuffer, target: PageBuffer, count: int) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
        """Packs the first `count` pages of `source`, each to the same place of `target`, where one that does not shrink
        is as it was. Their sizes and flags, as PackedPages has them."""
        page_size = self._page_size
        filled = np.flatnonzero(~zero_pages(source.pages[:count]))
        if not len(filled):
            return np.zeros(count, dtype=np.uint32), np.zeros(count, dtype=np.uint32)
        sizes = np.zeros(count, dtype=np.uint64)
        sizes[filled] = page_size
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
        resisting = ~_shrunk(tried, page_size)
        if resisting.any():
            dense = np.zeros(-(-count // GROUP), dtype=np.bool_)
            dense[probes // GROUP] = resisting
            doubtful = dense[others // GROUP]
            suspects = others[doubtful]
            likely = suspects[~look_random(source.pages[suspects])]
            others = np.concatenate((others[~doubtful], likely))
        sizes[others] = compressor.pack(source, target, ints(others))

        shrunk = _shrunk(sizes, page_size)
        final = np.where(shrunk, sizes, np.uint64(0)).astype(np.uint32)
        raw = filled[~shrunk[filled]]
        if len(raw):
            final[raw] = page_size
            target.pages[raw] = source.pages[raw]
        return final, shrunk * np.uint32(self._codec)


def _shrunk(sizes: NDArray[np.uint64], page_size: int) -> NDArray[np.bool_]:
    """An error of a library is 0 or a very large number; so is what it gave up."""
    return (sizes > 0) & (sizes < page_size)


def try_zlib() -> None:
    """Opens all that packs for zlib and is installed, so that whoever makes the capture image sees what is needed."""
    for level in (FAST, FAST + 1):
        _compressor(Codec.ZLIB, level, BLOCK_SIZE)


def _compressor(codec: Codec, level: int, page_size: int) -> _Compressor:
    """The fastest that there is. Raises UnsupportedError."""
    if codec is Codec.ZLIB and level == FAST:
        from kdumpd.dumpfile.isal import IsalCompressor

        with contextlib.suppress(OSError):
            return IsalCompressor()
    try:
        return NativeCompressor(codec, level, page_size)
    except OSError:
        # Python's module for the codec does the same, slower.
        return _PageByPage(packer(codec, level, page_size), page_size)


class _PageByPage:
    """What NativeCompressor does, by a function for one page."""

    def __init__(self, pack: Pack, page_size: int) -> None:
        self._pack = pack
        self._page_size = page_size

    def pack(self, source: PageBuffer, target: PageBuffer, which: Sequence[int]) -> list[int]:
        """As NativeCompressor.pack."""
        sizes = []
        page_size = self._page_size
        for at in (index * page_size for index in which):
            packed = self._pack(source.view[at : at + page_size])
            if len(packed) < page_size:
                target.view[at : at + len(packed)] = packed
            sizes.append(len(packed))
        return sizes
