# SPDX-License-Identifier: GPL-2.0-or-later
"""Processes that read batches of pages and pack them. Threads would not do: between two pages each waits for the
interpreter.

A worker is a fork of the collector and shares the batches' memory with it; two pipes carry their numbers. It holds
nothing open but the core, writes nowhere and ends with the collector. The collector itself does what no worker is free
for, and what none brings back: because it was killed for want of memory, or because pages cannot be read. So the
result depends on the pages alone.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import gc
import mmap
import os
import select
import signal
import struct
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NoReturn, Self

import numpy as np

from kdumpd.collector.order import Pfns
from kdumpd.dumpfile.diskdump import Codec
from kdumpd.dumpfile.native import PageBuffer
from kdumpd.dumpfile.packing import PackedPages, Packing
from kdumpd.vmcore.arrays import ints
from kdumpd.vmcore.memory import CrashedMemory

_REQUEST = struct.Struct("<HH?i")  # slot, pages in it, whether there is a level, the level
_PACKED, _ZERO, _GIVEN_UP = b".0?"
_STANDARD_FDS = 3
# Batches that a worker has at a time: the one that it packs, and one more so that it need not wait for the next.
AT_A_TIME = 2
_ANSWERS = 64  # more than a worker has under way


class Slot:
    """Room for a batch that all processes see: which pages it is of, what they are packed to, and how large each
    became. What was read is not in it: a buffer that one process uses again and again stays in its cache."""

    def __init__(self, pages: int, page_size: int, memory: memoryview) -> None:
        """In `memory`, of `bytes_for(pages, page_size)`."""
        size = pages * page_size
        self.target = PageBuffer(pages, memory[:size], page_size)
        facts = memory[size : self.bytes_for(pages, page_size)]
        self.pfns = np.frombuffer(facts[: 8 * pages], dtype=np.int64)
        self.facts = np.frombuffer(facts[8 * pages :], dtype=np.uint32).reshape(2, pages)

    @staticmethod
    def bytes_for(pages: int, page_size: int) -> int:
        """What a slot for so many pages takes."""
        return pages * (page_size + 16)

    def packed(self, count: int) -> PackedPages:
        """What became of the first `count` pages. It refers to the slot, which nothing else may take meanwhile."""
        sizes, flags = self.facts[:, :count]
        return PackedPages.of(self.target, sizes, flags)


class Packer:
    """Reads pages and packs them, in whatever process."""

    def __init__(self, core: CrashedMemory, codec: Codec, pages: int) -> None:
        """For batches of up to `pages`. Raises UnsupportedError when a library for `codec` is missing."""
        self._core = core
        self._codec = codec
        # Each process that packs has its own, after a fork, too.
        self._source = None if codec is Codec.RAW else PageBuffer(pages, page_size=core.page_size)
        self._packings: dict[int | None, Packing] = {None: Packing(codec, None, core.page_size)}

    def _packing(self, level: int | None) -> Packing:
        if level not in self._packings:
            self._packings[level] = Packing(self._codec, level, self._core.page_size)
        return self._packings[level]

    def read(self, slot: Slot, count: int) -> Pfns:
        """Reads the first `count` pages of a slot. The positions of those that cannot be read, which are zero then."""
        return self._core.read_pages(slot.pfns[:count], (self._source or slot.target).pages[:count])

    def pack(self, slot: Slot, count: int, level: int | None) -> bool:
        """Packs what was read before. Whether any of these pages has bytes."""
        sizes, flags = self._packing(level).pack(self._source or slot.target, slot.target, count)
        slot.facts[0, :count], slot.facts[1, :count] = sizes, flags
        return bool(sizes.any())


@dataclasses.dataclass(slots=True, eq=False)
class _Worker:
    """`batches` are those that it was asked for and has not answered, in their order."""

    pid: int
    requests: int
    answers: int
    batches: collections.deque[_Batch]


@dataclasses.dataclass(slots=True, kw_only=True, eq=False)
class _Batch:
    """Pages under way; `worker` has them, or nobody. When it is `done`, `slot` is None if all pages are zero, and
    `unreadable` are those that could not be read."""

    pfns: Pfns
    level: int | None
    slot: int | None
    worker: _Worker | None = None
    done: bool = False
    unreadable: list[int] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True, slots=True)
class Done:
    """A batch: its page frames, those of them that could not be read and are zero, and what became of all. It lies in
    memory that the next batch may take."""

    pfns: Pfns
    unreadable: list[int]
    packed: PackedPages


class Workers:
    """Reads and packs in `count` processes beside this one, or in as many as there is room for. A context manager."""

    def __init__(self, count: int, core: CrashedMemory, codec: Codec, pages: int, slots: int) -> None:
        """For `slots` batches of up to `pages` pages that are under way at a time."""
        self.lost = 0
        self.private_bytes = 0
        self._packer = Packer(core, codec, pages)
        self._waiting: collections.deque[_Batch] = collections.deque()
        self._workers: list[_Worker] = []
        size = Slot.bytes_for(pages, core.page_size)
        size += -size % mmap.PAGESIZE
        memory = memoryview(mmap.mmap(-1, size * slots))  # shared with the workers
        self._slots = [Slot(pages, core.page_size, memory[at : at + size]) for at in range(0, size * slots, size)]
        self._idle = list(range(slots))
        self._zeros = np.zeros(pages, dtype=np.uint32)
        if count:
            gc.freeze()  # so that the collector of a child writes to none of it
        for _ in range(count):
            try:
                self._workers.append(_fork(self._slots, self._packer, core.descriptors))
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

    @property
    def has_room(self) -> bool:
        """Whether another batch can be submitted."""
        return bool(self._idle) and (
            not self._workers or min(len(worker.batches) for worker in self._workers) < AT_A_TIME
        )

    def submit(self, pfns: Pfns, level: int | None) -> None:
        """Has the pages of ascending `pfns` read and packed, by the worker that has the least to do. There must be
        room. Raises what packing raises."""
        number = self._idle.pop()
        self._slots[number].pfns[: len(pfns)] = pfns
        batch = _Batch(pfns=pfns, level=level, slot=number)
        self._waiting.append(batch)
        while self._workers:
            if self._ask(min(self._workers, key=lambda each: len(each.batches)), batch, number):
                return
        self._do(batch, number)

    def collect(self) -> None:
        """Waits until a worker has answered, if any is at work, and takes all answers that are there."""
        for worker in self._answered():
            try:
                answers = os.read(worker.answers, _ANSWERS)
            except OSError:
                answers = b""
            for answer in answers:
                batch = worker.batches.popleft()
                batch.worker = None
                batch.done = answer != _GIVEN_UP
                if answer == _ZERO:
                    self._free(batch)
            if not answers:
                self._lose(worker)

    def result(self) -> Done | None:
        """What was submitted first, None if it is not done yet. Raises what packing raises."""
        if not self._waiting or self._waiting[0].worker is not None:
            return None
        batch = self._waiting[0]
        if not batch.done and batch.slot is not None:
            self._do(batch, batch.slot)
        self._waiting.popleft()
        count = len(batch.pfns)
        if batch.slot is None:
            packed = PackedPages((), self._zeros[:count], self._zeros[:count])
        else:
            packed = self._slots[batch.slot].packed(count)
            self._free(batch)
        return Done(batch.pfns, batch.unreadable, packed)

    @property
    def busy(self) -> bool:
        """Whether anything was submitted whose result was not taken."""
        return bool(self._waiting)

    def _free(self, batch: _Batch) -> None:
        if batch.slot is not None:
            self._idle.append(batch.slot)
            batch.slot = None

    def _do(self, batch: _Batch, number: int) -> None:
        """Reads and packs a batch in this process."""
        slot, count = self._slots[number], len(batch.pfns)
        batch.unreadable = ints(batch.pfns[self._packer.read(slot, count)])
        has_bytes = self._packer.pack(slot, count, batch.level)
        batch.done = True
        if not has_bytes:
            self._free(batch)

    def _answered(self) -> list[_Worker]:
        """The workers that have answered, or are no more; waits for one."""
        asked = {worker.answers: worker for worker in self._workers if worker.batches}
        if not asked:
            return []
        poll = select.poll()
        for descriptor in asked:
            poll.register(descriptor, select.POLLIN)
        return [asked[descriptor] for descriptor, _ in poll.poll()]

    def _ask(self, worker: _Worker, batch: _Batch, slot: int) -> bool:
        level = batch.level
        try:
            os.write(worker.requests, _REQUEST.pack(slot, len(batch.pfns), level is not None, level or 0))
        except OSError:
            self._lose(worker)
            return False
        batch.worker = worker
        worker.batches.append(batch)
        return True

    def _lose(self, worker: _Worker) -> None:
        self.lost += 1
        for batch in worker.batches:
            batch.worker = None
        self._end(worker)

    def _end(self, worker: _Worker) -> None:
        self._workers.remove(worker)
        os.close(worker.requests)
        os.close(worker.answers)
        # It holds nothing that could be left half done.
        with contextlib.suppress(OSError):
            os.kill(worker.pid, signal.SIGKILL)
            os.waitpid(worker.pid, 0)


def _fork(slots: Sequence[Slot], packer: Packer, descriptors: Iterable[int]) -> _Worker:
    """Starts a worker. Raises OSError."""
    with contextlib.ExitStack() as undo:
        theirs_in, requests = _pipe(undo)
        answers, theirs_out = _pipe(undo)
        pid = os.fork()
        if pid == 0:
            _worker(theirs_in, theirs_out, slots, packer, descriptors)
        undo.pop_all()
    os.close(theirs_in)
    os.close(theirs_out)
    return _Worker(pid, requests, answers, collections.deque())


def _pipe(undo: contextlib.ExitStack) -> tuple[int, int]:
    ends = os.pipe()
    for end in ends:
        undo.callback(os.close, end)
    return ends


def _worker(requests: int, answers: int, slots: Sequence[Slot], packer: Packer, descriptors: Iterable[int]) -> NoReturn:
    """All that a worker does, until the collector closes its pipe or is gone. Never returns."""
    try:
        gc.disable()
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the collector ends it
        # The target of the dump can be unmounted while this still lives, and each pipe has one end only.
        for first, last in _between((requests, answers, *descriptors)):
            os.closerange(first, last)
        while request := os.read(requests, _REQUEST.size):
            number, count, has_level, level = _REQUEST.unpack(request)
            slot = slots[number]
            if len(packer.read(slot, count)):
                answer = _GIVEN_UP  # whoever tells that pages are lost has tried to read them himself
            elif packer.pack(slot, count, level if has_level else None):
                answer = _PACKED
            else:
                answer = _ZERO
            os.write(answers, bytes((answer,)))
    finally:
        os._exit(0)  # whatever it was, the collector tries it again, and tells


def _between(kept: Iterable[int]) -> Iterator[tuple[int, int]]:
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
