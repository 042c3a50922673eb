# SPDX-License-Identifier: GPL-2.0-or-later
"""Copies pages from the core to the dump: read a batch, pack it, write it.

With more than one cpu other processes read and pack, too; writing is this one's. Batches are written in the order in
which they were asked for: the dump is the same for any number of processes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Self

from kdumpd.collector.order import Pfns, batches
from kdumpd.collector.progress import available_memory
from kdumpd.collector.workers import AT_A_TIME, Done, Workers
from kdumpd.dumpfile.diskdump import BLOCK_SIZE, Codec
from kdumpd.dumpfile.sink import PageWriter
from kdumpd.vmcore.memory import CrashedMemory

# In a batch: enough to hide the cost of each call, and they stay in the cache from reading to packing. They take 4 KiB
# each in a slot, and in each process that packs. Whole groups of packing.GROUP, so that what a page becomes does not
# depend on the number of workers.
_PAGES_ALONE = 512
_PAGES_SCARCE = 128
_PAGES_EACH = 256
MAX_WORKERS = 16  # more would wait for the one that writes
_WORKER_BYTES = 6 << 20  # measured: its slots and what it does not share
_SHARE = 8  # of what is available, the part that workers may take


@dataclasses.dataclass(slots=True)
class Copied:
    """`zero` counts pages that took no room, `unreadable` are the pfns of those saved as zeros since their memory
    could not be read. Of the processes that pack: what memory they had, and how many ended before their time."""

    zero: int = 0
    unreadable: list[int] = dataclasses.field(default_factory=list)
    workers_bytes: int = 0
    workers_lost: int = 0


def _affordable() -> tuple[int, int]:
    """How many workers there is memory for, and how many pages in a batch without any: read and packed, they lie in
    memory twice."""
    available = available_memory()
    if available is None:
        return MAX_WORKERS, _PAGES_ALONE
    share = available // _SHARE
    return share // _WORKER_BYTES, _PAGES_ALONE if share >= 2 * _PAGES_ALONE * BLOCK_SIZE else _PAGES_SCARCE


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
        self._writer = writer
        self._step = step
        self._copied = copied
        workers, pages = _affordable()
        count = min(threads, MAX_WORKERS, workers) if codec is not Codec.RAW else 0
        if count > 1:
            # One waits to be written while all workers have what they can have.
            self._pages, slots = _PAGES_EACH, AT_A_TIME * count + 1
        else:
            self._pages, slots, count = pages, 1, 0
        self._workers = Workers(count, core, codec, self._pages, slots)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._workers.close()
        self._copied.workers_bytes = self._workers.private_bytes
        self._copied.workers_lost = self._workers.lost

    def copy(self, pieces: Iterable[Pfns], level: int | None) -> None:
        """Copies the page frames of `pieces`, ascending, packed at `level`; `flush` waits for the last of them. Raises
        what the writer's target raises; the copier is of no use afterwards.

        A page that cannot be read is written as zeros.
        """
        workers = self._workers
        for pfns in batches(pieces, self._pages):
            while not workers.has_room:
                self._write_done()
            workers.submit(pfns, level)

    def flush(self) -> None:
        """Writes all that is under way. Raises as `copy` does."""
        while self._workers.busy:
            self._write_done()

    def _write_done(self) -> None:
        """Waits for the workers, and writes what can be written."""
        self._workers.collect()
        while (done := self._workers.result()) is not None:
            self._write(done)

    def _write(self, done: Done) -> None:
        packed = done.packed
        self._writer.write(packed, done.pfns)
        self._copied.unreadable.extend(done.unreadable)
        self._copied.zero += len(packed.sizes) - len(packed.parts)
        self._step()
