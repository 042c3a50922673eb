# SPDX-License-Identifier: GPL-2.0-or-later
"""Processes that pack batches of pages. Threads would not do: between two pages each waits for the interpreter.

A worker is a fork of the collector and shares the batches' memory with it; two pipes carry their numbers. It opens
nothing, writes nowhere and ends with the collector. What a worker does not bring back, because it was killed for want
of memory, is packed by the collector itself: the result depends on the pages alone.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import gc
import mmap
import os
import signal
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Self

import numpy as np

from kdumpd.dumpfile.diskdump import BLOCK_SIZE, Codec
from kdumpd.dumpfile.native import PageBuffer
from kdumpd.dumpfile.packing import PackedPages, Packing, zero_pages

_REQUEST = struct.Struct("<HH?i")  # slot, pages in it, whether there is a level, the level
_STANDARD_FDS = 3


class Slot:
    """Room for a batch: pages as they were read, what they are packed to, and how large each became."""

    def __init__(self, pages: int, memory: memoryview) -> None:
        """In `memory`, of `bytes_for(pages)`."""
        size = pages * BLOCK_SIZE
        self.source = PageBuffer(pages, memory[:size])
        self.target = PageBuffer(pages, memory[size : 2 * size])
        self._facts = np.frombuffer(memory[2 * size : self.bytes_for(pages)], dtype=np.uint32).reshape(2, pages)

    @staticmethod
    def bytes_for(pages: int) -> int:
        """What a slot for so many pages takes."""
        return pages * (2 * BLOCK_SIZE + 8)

    def pack_if_zero(self, count: int) -> bool:
        """Packs the first `count` pages if all of them are zero, which is less than asking for it."""
        pages = self.source.pages[:count]
        if pages[0].any() or not zero_pages(pages).all():
            return False
        self._facts[:, :count] = 0
        return True

    def pack(self, packing: Packing, count: int) -> None:
        """Packs the first `count` pages."""
        self._facts[0, :count], self._facts[1, :count] = packing.pack(self.source, self.target, count)

    def packed(self, count: int) -> PackedPages:
        """What became of them. It refers to the slot, which must not be used for others meanwhile."""
        sizes, flags = self._facts[:, :count].copy()
        return PackedPages.of(self.source, self.target, sizes, flags)


@dataclasses.dataclass(slots=True)
class _Worker:
    pid: int
    requests: int
    answers: int


@dataclasses.dataclass(slots=True, kw_only=True)
class _Batch:
    """Pages under way; `worker` has them, None when nobody was asked."""

    slot: int
    count: int
    level: int | None
    worker: _Worker | None = None
    packed: bool = False


class Workers:
    """Packs in `count` processes, or in as many as there is room for. A context manager; without processes it still
    packs, in `result`."""

    def __init__(self, count: int, codec: Codec, pages: int, slots: int) -> None:
        """For `slots` batches of up to `pages` pages that are under way at a time."""
        self.lost = 0
        self.private_bytes = 0
        self._packings = Packings(codec)
        self._waiting: collections.deque[_Batch] = collections.deque()
        self._next = 0
        self._workers: list[_Worker] = []
        size = Slot.bytes_for(pages)
        size += -size % mmap.PAGESIZE
        memory = memoryview(mmap.mmap(-1, size * slots))  # shared with the workers
        self.slots = [Slot(pages, memory[at : at + size]) for at in range(0, size * slots, size)]
        if count:
            gc.freeze()  # so that the collector of a child writes to none of it
        for _ in range(count):
            try:
                self._workers.append(_fork(self.slots, self._packings))
            except OSError:
                break  # no memory, no process number: the others do it

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the processes, whatever they are at."""
        self.private_bytes = sum(_private_bytes(worker.pid) for worker in self._workers)
        for worker in self._workers[:]:
            self._end(worker)

    def submit(self, slot: int, count: int, level: int | None) -> None:
        """Has the first `count` pages of a slot packed."""
        batch = _Batch(slot=slot, count=count, level=level)
        self._waiting.append(batch)
        if not self._workers:
            return
        batch.packed = self.slots[slot].pack_if_zero(count)
        if batch.packed:
            return
        worker = self._workers[self._next % len(self._workers)]
        self._next += 1
        try:
            os.write(worker.requests, _REQUEST.pack(slot, count, level is not None, level or 0))
            batch.worker = worker
        except OSError:
            self._lose(worker)

    def result(self) -> tuple[int, PackedPages]:
        """Waits for what was submitted first: its slot, and what became of its pages. Raises what packing raises."""
        batch = self._waiting.popleft()
        slot = self.slots[batch.slot]
        if not batch.packed and (batch.worker is None or not self._answered(batch.worker)):
            slot.pack(self._packings.of(batch.level), batch.count)
        return batch.slot, slot.packed(batch.count)

    def _answered(self, worker: _Worker) -> bool:
        if worker not in self._workers:
            return False  # it was lost with an earlier batch
        with contextlib.suppress(OSError):
            if os.read(worker.answers, 1):
                return True
        self._lose(worker)
        return False

    def _lose(self, worker: _Worker) -> None:
        if worker in self._workers:
            self.lost += 1
            self._end(worker)

    def _end(self, worker: _Worker) -> None:
        self._workers.remove(worker)
        os.close(worker.requests)
        os.close(worker.answers)
        # It holds nothing that could be left half done.
        with contextlib.suppress(OSError):
            os.kill(worker.pid, signal.SIGKILL)
            os.waitpid(worker.pid, 0)


class Packings:
    """One Packing for each level that is asked for."""

    def __init__(self, codec: Codec) -> None:
        """Raises UnsupportedError when a library for `codec` is missing."""
        self._codec = codec
        self._found: dict[int | None, Packing] = {None: Packing(codec, None)}

    def of(self, level: int | None) -> Packing:
        """The one for `level`."""
        if level not in self._found:
            self._found[level] = Packing(self._codec, level)
        return self._found[level]


def _fork(slots: Sequence[Slot], packings: Packings) -> _Worker:
    """Starts a worker. Raises OSError."""
    with contextlib.ExitStack() as undo:
        theirs_in, requests = _pipe(undo)
        answers, theirs_out = _pipe(undo)
        pid = os.fork()
        if pid == 0:
            _worker(theirs_in, theirs_out, slots, packings)
        undo.pop_all()
    os.close(theirs_in)
    os.close(theirs_out)
    return _Worker(pid, requests, answers)


def _pipe(undo: contextlib.ExitStack) -> tuple[int, int]:
    ends = os.pipe()
    for end in ends:
        undo.callback(os.close, end)
    return ends


def _worker(requests: int, answers: int, slots: Sequence[Slot], packings: Packings) -> None:
    """All that a worker does, until the collector closes its pipe or is gone. Never returns."""
    try:
        gc.disable()
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the collector ends it
        # The target of the dump can be unmounted while this still lives, and each pipe has one end only.
        for first, last in _between((requests, answers)):
            os.closerange(first, last)
        while request := os.read(requests, _REQUEST.size):
            slot, count, has_level, level = _REQUEST.unpack(request)
            slots[slot].pack(packings.of(level if has_level else None), count)
            os.write(answers, b".")
    finally:
        os._exit(0)  # whatever it was, the collector tries it again, and tells


def _between(kept: tuple[int, int]) -> Iterator[tuple[int, int]]:
    first = _STANDARD_FDS
    for number in (*sorted(kept), os.sysconf("SC_OPEN_MAX")):
        yield first, number
        first = number + 1


def _private_bytes(pid: int) -> int:
    """The memory that is this process's alone (smaps_rollup of proc(5)); 0 where the kernel does not tell."""
    total = 0
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines():
            if line.startswith(("Private_Clean:", "Private_Dirty:")):
                total += int(line.split()[1]) * 1024
    return total
