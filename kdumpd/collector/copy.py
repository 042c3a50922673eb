# SPDX-License-Identifier: GPL-2.0-or-later
"""Copies the kept pages from the core to the dump: read a batch, find its zero pages, pack the rest, write.

With more than one thread the batches are packed side by side, as compressing releases the interpreter's lock, and
written in the order in which they were read: the dump is the same for any number of threads.
"""

from __future__ import annotations

import collections
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from kdumpd.dumpfile.codecs import Pack, packer
from kdumpd.dumpfile.diskdump import Codec
from kdumpd.dumpfile.writer import DiskdumpWriter, PackedPages
from kdumpd.vmcore.arrays import ints
from kdumpd.vmcore.memory import PAGE_SIZE, CrashedMemory

# 2 MiB a batch: large enough to hide the cost of each call, small enough to have several in a small capture kernel.
_BATCH_PAGES = 512
_BITMAP_STEP = 1 << 13  # bytes of bitmap, 65,536 pages, looked at in one go

Step = Callable[[int, int, int, int], None]


def batches(kept: npt.NDArray[np.uint8]) -> Iterator[npt.NDArray[np.int64]]:
    """The set bits of `kept` as ascending pfns, at most _BATCH_PAGES at a time."""
    for at in range(0, len(kept), _BITMAP_STEP):
        part = kept[at : at + _BITMAP_STEP]
        if not part.any():
            continue
        pfns = np.flatnonzero(np.unpackbits(part, bitorder="little")).astype(np.int64) + at * 8
        for first in range(0, len(pfns), _BATCH_PAGES):
            yield pfns[first : first + _BATCH_PAGES]


class _Packing:
    """Packs batches; each thread has a compressor of its own."""

    def __init__(self, codec: Codec, level: int | None, exclude_zero: bool) -> None:
        self._codec = codec
        self._level = level
        self._exclude_zero = exclude_zero
        self._local = threading.local()

    def _pack(self) -> Pack:
        found: Pack | None = getattr(self._local, "pack", None)
        if found is None:
            found = self._local.pack = packer(self._codec, self._level)
        return found

    def __call__(self, pages: npt.NDArray[np.uint8]) -> PackedPages:
        count = len(pages)
        sizes = np.zeros(count, dtype=np.uint32)
        flags = np.zeros(count, dtype=np.uint32)
        filled = ints(np.flatnonzero(pages.view(np.uint64).any(axis=1))) if self._exclude_zero else list(range(count))
        if self._codec is Codec.RAW:
            sizes[filled] = PAGE_SIZE
            return PackedPages(pages[filled].tobytes(), sizes, flags)
        pack = self._pack()
        view = pages.data.cast("B")
        parts: list[bytes | memoryview] = []
        for index in filled:
            page = view[index * PAGE_SIZE : (index + 1) * PAGE_SIZE]
            packed: bytes | memoryview = pack(page)
            size = len(packed)
            # A page that does not shrink is stored as it is; readers refuse blocks larger than a page.
            if size >= PAGE_SIZE:
                packed, size = page, PAGE_SIZE
            else:
                flags[index] = self._codec
            sizes[index] = size
            parts.append(packed)
        return PackedPages(b"".join(parts), sizes, flags)


class Copied:
    """Counts of a copy, kept up to date while it runs so that an error leaves them right."""

    def __init__(self) -> None:
        self.pages = 0
        self.zero = 0
        self.unreadable: list[int] = []


def copy_pages(
    core: CrashedMemory,
    writer: DiskdumpWriter,
    kept: npt.NDArray[np.uint8],
    total: int,
    *,
    codec: Codec,
    compression_level: int | None,
    exclude_zero: bool,
    threads: int,
    step: Step,
    copied: Copied,
) -> None:
    """Copies all pages of `kept`, `total` of them, with `threads` packing. Raises what the writer's target raises.

    A page that cannot be read is written as zeros and its pfn remembered in `copied.unreadable`.
    """
    packing = _Packing(codec, compression_level, exclude_zero)

    def read(pfns: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
        pages = np.empty((len(pfns), PAGE_SIZE), dtype=np.uint8)
        bad = core.read_pages(pfns, pages)
        copied.unreadable.extend(ints(pfns[bad]))
        return pages

    def write(pfns: npt.NDArray[np.int64], packed: PackedPages) -> None:
        writer.write(packed, pfns)
        copied.pages += len(packed.sizes)
        copied.zero += int((packed.sizes == 0).sum())
        step(copied.pages, total, copied.pages * PAGE_SIZE, writer.size)

    if threads <= 1:
        for pfns in batches(kept):
            write(pfns, packing(read(pfns)))
        return
    with ThreadPoolExecutor(max_workers=threads) as pool:
        waiting: collections.deque[tuple[npt.NDArray[np.int64], Future[PackedPages]]] = collections.deque()
        for pfns in batches(kept):
            waiting.append((pfns, pool.submit(packing, read(pfns))))
            if len(waiting) > 2 * threads:
                oldest, packed = waiting.popleft()
                write(oldest, packed.result())
        while waiting:
            oldest, packed = waiting.popleft()
            write(oldest, packed.result())
