# SPDX-License-Identifier: GPL-2.0-or-later
"""Copies pages from the core to the dump: read a batch, pack it, write it.

Reading and writing are the main thread's; with more than one thread, others pack meanwhile, as the libraries that
compress let the interpreter go on. Batches are written in the order in which they were read: the dump is the same
for any number of threads.
"""

from __future__ import annotations

import collections
import dataclasses
import queue
import threading
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Self

import numpy as np

from kdumpd.collector.order import batches
from kdumpd.dumpfile.diskdump import Codec
from kdumpd.dumpfile.native import PageBuffer
from kdumpd.dumpfile.packing import GROUP, PackedPages, Packing
from kdumpd.dumpfile.sink import PageWriter
from kdumpd.vmcore.arrays import NDArray, ints
from kdumpd.vmcore.memory import CrashedMemory

# Under way at a time: enough to hide the cost of each call, and they stay in the cache from reading to packing. All
# batches share them, so that memory has one bound, 4 MiB, for any number of threads.
BATCH_PAGES = 512
# More threads would only wait for the interpreter.
MAX_THREADS = 8

Pfns = NDArray[np.int64]


class _Batch:
    """Pages on their way, with room for what they are packed to."""

    def __init__(self, pages: int) -> None:
        self.source = PageBuffer(pages)
        self.target = PageBuffer(pages)
        self.pfns: Pfns = np.zeros(0, dtype=np.int64)
        self.packed: PackedPages | None = None
        self.error: BaseException | None = None
        self.done = threading.Semaphore(0)

    def result(self) -> PackedPages:
        """Waits until it is packed."""
        self.done.acquire()
        packed, self.packed = self.packed, None
        if self.error is not None or packed is None:
            raise self.error or RuntimeError("a batch came back unpacked")
        return packed


@dataclasses.dataclass(slots=True)
class Copied:
    """`zero` counts pages that took no room, `unreadable` are the pfns of those saved as zeros since their memory
    could not be read."""

    zero: int = 0
    unreadable: list[int] = dataclasses.field(default_factory=list)


class Copier:
    """Copies any number of stages to one writer; a context manager, as it may own threads."""

    def __init__(
        self,
        core: CrashedMemory,
        writer: PageWriter,
        *,
        codec: Codec,
        level: int | None,
        threads: int,
        step: Callable[[], None],
        copied: Copied,
    ) -> None:
        """`step` is called after each batch, `copied` is kept up to date."""
        self._core = core
        self._writer = writer
        self._step = step
        self._queue: queue.SimpleQueue[_Batch | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        threads = max(1, min(threads, MAX_THREADS))
        count = threads + 2 if threads > 1 else 1
        # Whole groups of packing.GROUP, so that what a page becomes does not depend on the number of threads.
        self._pages = BATCH_PAGES // count // GROUP * GROUP
        self._idle = [_Batch(self._pages) for _ in range(count)]
        self._packing = Packing(codec, level)
        if threads > 1:
            for number in range(threads):
                packing = self._packing if number == 0 else Packing(codec, level)
                thread = threading.Thread(target=self._serve, args=(packing,), name=f"pack-{number}", daemon=True)
                thread.start()
                self._threads.append(thread)
        self._copied = copied

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for _ in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            thread.join()

    def copy(self, pieces: Iterable[Pfns]) -> None:
        """Copies the page frames of `pieces`, ascending. Raises what the writer's target raises.

        A page that cannot be read is written as zeros.
        """
        under_way: collections.deque[_Batch] = collections.deque()
        try:
            for pfns in batches(pieces, self._pages):
                if not self._idle:
                    self._write(under_way.popleft())
                batch = self._idle.pop()
                batch.pfns = pfns
                bad = self._core.read_pages(pfns, batch.source.pages[: len(pfns)])
                self._copied.unreadable.extend(ints(pfns[bad]))
                if self._threads:
                    self._queue.put(batch)
                else:
                    _pack(self._packing, batch)
                under_way.append(batch)
            while under_way:
                self._write(under_way.popleft())
        finally:
            # After an error the others are left to end: their buffers must not be used while they are packed.
            for batch in under_way:
                batch.done.acquire()
                self._idle.append(batch)

    def _write(self, batch: _Batch) -> None:
        try:
            packed = batch.result()
            self._writer.write(packed, batch.pfns)
            self._copied.zero += len(packed.sizes) - len(packed.parts)
        finally:
            self._idle.append(batch)
        self._step()

    def _serve(self, packing: Packing) -> None:
        while (batch := self._queue.get()) is not None:
            _pack(packing, batch)


def _pack(packing: Packing, batch: _Batch) -> None:
    batch.error = None
    try:
        batch.packed = packing(batch.source, batch.target, len(batch.pfns))
    except BaseException as error:  # it is raised again where the batch is waited for
        batch.error = error
    batch.done.release()
