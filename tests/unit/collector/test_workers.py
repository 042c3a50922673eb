# SPDX-License-Identifier: GPL-2.0-or-later
"""Packing in processes: the same as in one, whatever becomes of them."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from fake_kernel import OLD, PAGE, PAGES, FakeKernel

from kdumpd.collector import copy
from kdumpd.collector import workers as workers_module
from kdumpd.collector.dump import PHASES, Outcome, write_dump
from kdumpd.collector.options import DumpOptions
from kdumpd.collector.progress import Progress
from kdumpd.collector.source import Source
from kdumpd.collector.workers import Workers
from kdumpd.dumpfile.diskdump import Codec
from kdumpd.dumpfile.reader import verify
from kdumpd.targets.files import OutputFile
from kdumpd.vmcore.memory import CrashedMemory

TOP = Path(__file__).resolve().parents[3]
COUNT = 64


class Chance(CrashedMemory):
    """Memory that is made up while it is read, by page frame. Who reads a page of `bad_for` cannot, if it is a process
    of that kind: a worker, or the one that has them."""

    def __init__(self, bad_for_workers: Sequence[int] = (), bad_for_all: Sequence[int] = ()) -> None:
        self._mine = os.getpid()
        self._bad_for_workers, self._bad_for_all = bad_for_workers, bad_for_all

    def close(self) -> None:
        """Nothing is open."""

    def read(self, paddr: int, size: int) -> bytes:
        raise NotImplementedError

    def view(self, paddr: int, size: int) -> memoryview:
        raise NotImplementedError

    def read_pages(self, pfns: np.ndarray, out: np.ndarray) -> np.ndarray:
        bad = [*self._bad_for_all, *(self._bad_for_workers if os.getpid() != self._mine else ())]
        for number, pfn in enumerate(pfns.tolist()):
            chance = np.random.default_rng(pfn)
            kind = pfn % 64
            # Every fourth batch is all zeros.
            if kind in (5, 9) or pfn // COUNT % 4 == 3 or pfn in bad:
                out[number] = 0
            else:
                out[number] = chance.integers(0, 256 if kind == 6 else 4, PAGE)
        return np.flatnonzero(np.isin(pfns, bad))


def packed(workers: Workers, rounds: int, meanwhile: Callable[[int], None] = lambda _: None) -> list[bytes]:
    """What comes of so many batches, each of the next pages; `meanwhile` is called between them."""
    out: list[bytes] = []
    unreadable: list[int] = []

    def take() -> None:
        workers.collect()
        while (done := workers.result()) is not None:
            assert done.pfns.tolist() == list(range(len(out) * COUNT, (len(out) + 1) * COUNT))
            unreadable.extend(done.unreadable)
            pages = done.packed
            out.append(b"".join(pages.parts) + pages.sizes.tobytes() + pages.flags.tobytes())

    for number in range(rounds):
        meanwhile(number)
        while not workers.has_room:
            take()
        workers.submit(np.arange(number * COUNT, (number + 1) * COUNT, dtype=np.int64), 1 + number % 3)
    while workers.busy:
        take()
    return [*out, repr(unreadable).encode()]


def children() -> list[int]:
    return [int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]


@pytest.fixture(scope="module")
def alone() -> list[bytes]:
    with Workers(0, Chance(), Codec.ZSTD, COUNT, 1) as workers:
        return packed(workers, 20)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_the_same_from_any_number(alone: list[bytes], count: int) -> None:
    before = children()
    with Workers(count, Chance(), Codec.ZSTD, COUNT, 2 * count + 1) as workers:
        assert len(children()) == len(before) + count
        assert packed(workers, 20) == alone
    assert workers.lost == 0
    assert 0 < workers.private_bytes < count * (20 << 20)
    assert children() == before


@pytest.mark.parametrize("victims", [1, 3])
def test_killed_ones_are_missed_by_nobody(alone: list[bytes], victims: int) -> None:
    before = set(children())
    with Workers(3, Chance(), Codec.ZSTD, COUNT, 7) as workers:
        mine = [pid for pid in children() if pid not in before]

        def kill(number: int) -> None:
            if number == 7:
                for pid in mine[:victims]:
                    os.kill(pid, signal.SIGKILL)

        assert packed(workers, 20, kill) == alone
    assert workers.lost == victims
    assert set(children()) == before


def test_what_a_worker_cannot_read_is_tried_again_before_it_counts_as_lost(alone: list[bytes]) -> None:
    with Workers(2, Chance(bad_for_workers=[70, 71, 550]), Codec.ZSTD, COUNT, 5) as workers:
        assert packed(workers, 20) == alone
    lost = [70, 550]
    with Workers(0, Chance(bad_for_all=lost), Codec.ZSTD, COUNT, 1) as workers:
        other = packed(workers, 20)
    assert other[-1] == b"[70, 550]"
    assert [left == right for left, right in zip(other, alone, strict=True)].count(False) == 3
    with Workers(2, Chance(bad_for_all=lost), Codec.ZSTD, COUNT, 5) as workers:
        assert packed(workers, 20) == other


@pytest.mark.parametrize(("available", "count"), [(60 << 20, 0), (100 << 20, 2), (1 << 40, 4), (None, 4)])
def test_no_more_than_there_is_memory_for(
    available: int | None, count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(copy, "available_memory", lambda: available)
    monkeypatch.setattr(copy, "Workers", lambda *words: asked.append(words[0]))
    copy.Copier(Chance(), None, codec=Codec.ZSTD, threads=4, step=lambda: None, copied=copy.Copied())  # type: ignore[arg-type]
    assert asked == [count]


def test_no_process_can_be_started(alone: list[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    def fork() -> int:
        raise BlockingIOError

    open_before = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(workers_module.os, "fork", fork)
    with Workers(2, Chance(), Codec.ZSTD, COUNT, 5) as workers:
        assert packed(workers, 20) == alone
    assert len(os.listdir("/proc/self/fd")) == open_before


def test_they_hold_nothing_open_but_the_core_and_end_with_the_collector(tmp_path: Path) -> None:
    """Else the target could not be unmounted after a collector that was killed."""
    core = FakeKernel(OLD).write(tmp_path / "core")
    program = """
import pathlib, sys, time
from kdumpd.collector.workers import Workers
from kdumpd.dumpfile.diskdump import Codec
from kdumpd.vmcore.elfcore import ElfCore
held = open(sys.argv[1], "w")
core = ElfCore(pathlib.Path(sys.argv[2]))
Workers(2, core, Codec.ZSTD, 16, 4)
print("ready", flush=True)
time.sleep(60)
"""
    held = tmp_path / "held"
    parent = subprocess.Popen([sys.executable, "-c", program, str(held), str(core)], cwd=TOP, stdout=subprocess.PIPE)
    assert parent.stdout is not None
    assert parent.stdout.readline() == b"ready\n"
    mine = [int(pid) for pid in Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()]
    assert len(mine) == 2
    for pid in mine:
        # It closes what it does not need after the fork, one by one.
        wait_for(
            lambda pid=pid: (
                not [name for name in descriptors(pid)[3:] if not name.startswith("pipe:") and name != str(core)]
            )
        )
        assert str(core) in descriptors(pid)
        assert str(held) not in descriptors(pid)
    parent.kill()
    parent.wait()
    for pid in mine:
        wait_for(lambda pid=pid: not alive(pid))
    parent.stdout.close()


def descriptors(pid: int) -> list[str]:
    """What a process has open, in the order of the numbers. One that it closes meanwhile is left out."""
    folder = Path(f"/proc/{pid}/fd")
    names = []
    for number in sorted(int(each.name) for each in folder.iterdir()):
        with contextlib.suppress(FileNotFoundError):
            names.append(os.readlink(folder / str(number)))
    return names


def alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_for(happened: Callable[[], bool]) -> None:
    until = time.monotonic() + 20
    while not happened():
        assert time.monotonic() < until
        time.sleep(0.05)


def test_a_dump_whose_workers_are_killed_is_whole_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = FakeKernel(OLD)
    kernel.memory[0x300 * PAGE : 0x340 * PAGE] = os.urandom(0x40 * PAGE)
    core = kernel.write(tmp_path / "core", [(0, PAGES)])
    before = set(children())
    submit = Workers.submit

    def kill_first(self: Workers, pfns: np.ndarray, level: int | None) -> None:
        for pid in set(children()) - before:
            os.kill(pid, signal.SIGKILL)
        submit(self, pfns, level)

    outs = []
    for name, threads in (("alone", 1), ("many", 3)):
        outcome, quiet = Outcome(), Progress(PHASES, stream=io.StringIO())
        out = tmp_path / name
        options = DumpOptions(levels=(0,), codec=Codec.ZSTD, compression_level=1, threads=threads)
        if threads > 1:
            monkeypatch.setattr(Workers, "submit", kill_first)
        with Source.open(core) as source, OutputFile(os.open(out, os.O_RDWR | os.O_CREAT, 0o600), str(out)) as file:
            write_dump(source, file, outcome, options, quiet)
        verify(out)
        outs.append(out.read_bytes())
    assert outs[0] == outs[1]
    assert "3 processes that packed pages ended; others did their work" in outcome.notes
    assert set(children()) == before
