# SPDX-License-Identifier: GPL-2.0-or-later
"""Packing in processes: the same as in one, whatever becomes of them."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
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

TOP = Path(__file__).resolve().parents[3]
COUNT = 64


def fill(workers: Workers, slot: int, seed: int) -> None:
    chance = np.random.default_rng(seed)
    pages = workers.slots[slot].source.pages
    pages[:] = chance.integers(0, 4, pages.shape)
    pages[seed % COUNT] = 0
    pages[(seed + 1) % COUNT] = chance.integers(0, 256, PAGE)


def packed(workers: Workers, rounds: int, meanwhile: Callable[[int], None] = lambda _: None) -> list[bytes]:
    """What comes of so many batches, each filled by its number; `meanwhile` is called between them."""
    out = []
    idle = list(range(len(workers.slots)))
    for number in range(rounds):
        meanwhile(number)
        if not idle:
            slot, pages = workers.result()
            out.append(b"".join(pages.parts) + pages.sizes.tobytes() + pages.flags.tobytes())
            idle.append(slot)
        slot = idle.pop()
        fill(workers, slot, number)
        workers.submit(slot, COUNT, 1 + number % 3)
    while len(out) < rounds:
        _, pages = workers.result()
        out.append(b"".join(pages.parts) + pages.sizes.tobytes() + pages.flags.tobytes())
    return out


def children() -> list[int]:
    return [int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]


@pytest.fixture(scope="module")
def alone() -> list[bytes]:
    with Workers(0, Codec.ZSTD, COUNT, 1) as workers:
        return packed(workers, 20)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_the_same_from_any_number(alone: list[bytes], count: int) -> None:
    before = children()
    with Workers(count, Codec.ZSTD, COUNT, count + 2) as workers:
        assert len(children()) == len(before) + count
        assert packed(workers, 20) == alone
    assert workers.lost == 0
    assert 0 < workers.private_bytes < count * (20 << 20)
    assert children() == before


@pytest.mark.parametrize("victims", [1, 3])
def test_killed_ones_are_missed_by_nobody(alone: list[bytes], victims: int) -> None:
    before = set(children())
    with Workers(3, Codec.ZSTD, COUNT, 5) as workers:
        mine = [pid for pid in children() if pid not in before]

        def kill(number: int) -> None:
            if number == 7:
                for pid in mine[:victims]:
                    os.kill(pid, signal.SIGKILL)

        assert packed(workers, 20, kill) == alone
    assert workers.lost == victims
    assert set(children()) == before


@pytest.mark.parametrize(("available", "count"), [(60 << 20, 0), (90 << 20, 2), (1 << 40, 4), (None, 4)])
def test_no_more_than_there_is_memory_for(
    available: int | None, count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(copy, "available_memory", lambda: available)
    monkeypatch.setattr(copy, "Workers", lambda *words: asked.append(words[0]))
    copy.Copier(None, None, codec=Codec.ZSTD, threads=4, step=lambda: None, copied=copy.Copied())  # type: ignore[arg-type]
    assert asked == [count]


def test_no_process_can_be_started(alone: list[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    def fork() -> int:
        raise BlockingIOError

    descriptors = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(workers_module.os, "fork", fork)
    with Workers(2, Codec.ZSTD, COUNT, 4) as workers:
        assert packed(workers, 20) == alone
    assert len(os.listdir("/proc/self/fd")) == descriptors


def test_they_hold_nothing_open_and_end_with_the_collector(tmp_path: Path) -> None:
    """Else the target could not be unmounted after a collector that was killed."""
    program = """
import sys, time
from kdumpd.collector.workers import Workers
from kdumpd.dumpfile.diskdump import Codec
held = open(sys.argv[1], "w")
Workers(2, Codec.ZSTD, 16, 4)
print("ready", flush=True)
time.sleep(60)
"""
    held = tmp_path / "held"
    parent = subprocess.Popen([sys.executable, "-c", program, str(held)], cwd=TOP, stdout=subprocess.PIPE)
    assert parent.stdout is not None
    assert parent.stdout.readline() == b"ready\n"
    mine = [int(pid) for pid in Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()]
    assert len(mine) == 2
    for pid in mine:
        wait_for(lambda pid=pid: str(held) not in [os.readlink(each) for each in Path(f"/proc/{pid}/fd").iterdir()])
    parent.kill()
    parent.wait()
    for pid in mine:
        wait_for(lambda pid=pid: not alive(pid))
    parent.stdout.close()


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

    def kill_first(self: Workers, slot: int, count: int, level: int | None) -> None:
        for pid in set(children()) - before:
            os.kill(pid, signal.SIGKILL)
        submit(self, slot, count, level)

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
