# SPDX-License-Identifier: GPL-2.0-or-later
"""Copies pages from the core to the dump: read a batch, pack it, write it.

Reading and writing are this process's; with more than one cpu, others pack meanwhile. Batches are written in the order
in which they were read: the dump is the same for any number of processes.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Self

import numpy as np

from kdumpd.collector.order import batches
from kdumpd.collector.progress import available_memory
from kdumpd.collector.workers import Workers
from kdumpd.dumpfile.diskdump import Codec
from kdumpd.dumpfile.sink import PageWriter
from kdumpd.vmcore.arrays import NDArray, ints
from kdumpd.vmcore.memory import CrashedMemory

# Under way at a time: enough to hide the cost of each call, and they stay in the cache from reading to packing. A slot
# takes twice as much: 4 MiB alone, and 2 MiB for each of several. Whole groups of packing.GROUP, so that what a page
# becomes does not depend on the number of workers.
_PAGES_ALONE = 512
_PAGES_EACH = 256
MAX_WORKERS = 16  # more would wait for the one that reads and writes
_WORKER_BYTES = 5 << 20  # measured: its slot and what it does not share
_SHARE = 8  # of what is available, the part that workers may take

Pfns = NDArray[np.int64]


@dataclasses.dataclass(slots=True)
class Copied:
    """`zero` counts pages that took no room, `unreadable` are the pfns of those saved as zeros since their memory
    could not be read. Of the processes that pack: what memory they had, and how many ended before their time."""

    zero: int = 0
    unreadable: list[int] = dataclasses.field(default_factory=list)
    workers_bytes: int = 0
    workers_lost: int = 0


def _affordable() -> int:
    """How many workers there is memory for."""
    available = available_memory()
    return MAX_WORKERS if available is None else available // _SHARE // _WORKER_BYTES


class Copier:
    """Copies any number of stages to one writer; a context manager, as it may own processes."""

    def __init__(
        self,
        core: CrashedMemory,
        writer: PageWriter,
        *,
        codec: Codec,
        threads: int,
        step: Callable[[], None],
        copied: Copied,
    ) -> None:
        """`threads` is how many cpus are to be used. `step` is called after each batch, `copied` is kept up to date."""
        self._core = core
        self._writer = writer
        self._step = step
        self._copied = copied
        count = min(threads, MAX_WORKERS, _affordable()) if codec is not Codec.RAW else 0
        if count > 1:
            self._pages, slots = _PAGES_EACH, count + 2
        else:
            self._pages, slots, count = _PAGES_ALONE, 1, 0
        self._workers = Workers(count, codec, self._pages, slots)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._workers.close()
        self._copied.workers_bytes = self._workers.private_bytes
        self._copied.workers_lost = self._workers.lost

    def copy(self, pieces: Iterable[Pfns], level: int | None) -> None:
        """Copies the page frames of `pieces`, ascending, packed at `level`. Raises what the writer's target raises;
        the copier is of no use afterwards.

        A page that cannot be read is written as zeros.
        """
        workers = self._workers
        idle = list(range(len(workers.slots)))
        under_way: collections.deque[Pfns] = collections.deque()
        for pfns in batches(pieces, self._pages):
            if not idle:
                idle.append(self._write(under_way.popleft()))
            slot = idle.pop()
            bad = self._core.read_pages(pfns, workers.slots[slot].source.pages[: len(pfns)])
            self._copied.unreadable.extend(ints(pfns[bad]))
            workers.submit(slot, len(pfns), level)
            under_way.append(pfns)
        while under_way:
            self._write(under_way.popleft())

    def _write(self, pfns: Pfns) -> int:
        """Writes what was read first; the slot that is free then."""
        slot, packed = self._workers.result()
        self._writer.write(packed, pfns)
        self._copied.zero += len(packed.sizes) - len(packed.parts)
        self._step()
        return slot
