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
from kdumpd.dumpfile.diskdump import Codec
from kdumpd.dumpfile.packing import GROUP
from kdumpd.dumpfile.sink import PageWriter
from kdumpd.vmcore.memory import CrashedMemory

# Bytes of pages in a batch: enough to hide the cost of each call, and they stay in the cache from reading to packing.
# They take that much in a slot, and in each process that packs.
_BYTES_ALONE = 2 << 20
_BYTES_SCARCE = 512 << 10
_BYTES_EACH = 1 << 20
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
    """How many workers there is memory for, and how many bytes of pages in a batch without any: read and packed, they
    lie in memory twice."""
    available = available_memory()
    if available is None:
        return MAX_WORKERS, _BYTES_ALONE
    share = available // _SHARE
    return share // _WORKER_BYTES, _BYTES_ALONE if share >= 2 * _BYTES_ALONE else _BYTES_SCARCE


def _pages_in(size: int, page_size: int) -> int:
    """Pages for a batch of `size` bytes: whole groups of packing.GROUP, so that what a page becomes does not depend on
    the number of workers."""
    return max(1, size // page_size // GROUP) * GROUP


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
        workers, size = _affordable()
        count = min(threads, MAX_WORKERS, workers) if codec is not Codec.RAW else 0
        if count > 1:
            # One waits to be written while all workers have what they can have.
            size, slots = _BYTES_EACH, AT_A_TIME * count + 1
        else:
            slots, count = 1, 0
        self._pages = _pages_in(size, core.page_size)
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
