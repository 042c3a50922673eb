# SPDX-License-Identifier: GPL-2.0-or-later
"""What the daemon costs while nothing happens: wake-ups and resident memory. It is its own process, as it ships."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from bus_bench import TOP, Bus, Client, wait
from fake_machine import RELEASE, FakeBuilder, FakeMachine

from kdumpd.dumpfile.manifest import FileRecord

LIMIT_KIB = 30 * 1024
WINDOW_SECONDS = 3.0


@contextlib.contextmanager
def _daemon(machine: FakeMachine, bus: Bus, interval: float) -> Iterator[tuple[int, Client]]:
    """The daemon without anything of the tests in its process; somebody else's capture kernel is loaded."""
    words = [sys.executable, "-m", "kdumpd.service", "--root", str(machine.root), "--bus-address", bus.address]
    with open(machine.root.parent / "log", "wb") as log:
        environ = {**os.environ, "PYTHONMALLOC": "malloc"}  # as the unit has it
        process = subprocess.Popen([*words, "--interval", str(interval)], stderr=log, cwd=TOP, env=environ)
        try:
            client = Client(bus.address)
            wait((machine.root.parent / "log").read_text, "the first look")
            wait(lambda: client.get("State") == "unloaded", "an answer")
            time.sleep(1.5)  # the burst of its own first look
            yield process.pid, client
        finally:
            process.terminate()
            process.wait(60)


def _wakeups(pid: int) -> int:
    """How often a thread of the process went to sleep, which is as often as one woke up."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # a thread that ended
            match = re.search(r"^voluntary_ctxt_switches:\s*(\d+)", (task / "status").read_text(), re.MULTILINE)
            assert match is not None
            total += int(match[1])
    return total


def _quiet(pid: int, interval: float) -> list[tuple[int, float]]:
    """Wake-ups and seconds of windows up to the first one with no more than one for each interval, and one over. What
    else runs on this machine may cause device events, so that some windows have more: it fails when all of them do."""
    found: list[tuple[int, float]] = []
    while not found or found[-1][0] > found[-1][1] / interval + 1:
        assert len(found) < 10, found
        before, begin = _wakeups(pid), time.monotonic()
        time.sleep(WINDOW_SECONDS)
        found.append((_wakeups(pid) - before, time.monotonic() - begin))
    return found


def test_it_wakes_up_once_for_each_reading_and_for_nothing_else(machine: FakeMachine, bus: Bus) -> None:
    FakeBuilder(machine).build(RELEASE)
    machine.crash_loaded(True)
    with _daemon(machine, bus, 30.0) as (pid, _):
        _quiet(pid, 30.0)
    with _daemon(machine, bus, 0.5) as (pid, _):
        _quiet(pid, 0.5)  # one thread, once a tick


def test_it_stays_below_30_mib(machine: FakeMachine, bus: Bus) -> None:
    FakeBuilder(machine).build(RELEASE)
    machine.crash_loaded(True)
    with _daemon(machine, bus, 30.0) as (pid, client):
        for _ in range(200):
            client.all()
        machine.config("final_action halt\n")  # some more looks, and a journal entry
        wait(lambda: "image-stale" in [reason["code"] for reason in client.get("Reasons")], "a look")
        before = _resident_kib(pid)
        _crash(machine)
        log = machine.root.parent / "log"
        wait(lambda: "its checksum differs" in log.read_text(), "the check of a dump")
        found = []

        def rests() -> bool:
            found.append(_resident_kib(pid))
            return found[-1] < LIMIT_KIB and found[-1] - before < 1024

        time.sleep(1.5)
        wait(rests, "the end of what the check of a dump took")
        maps = Path(f"/proc/{pid}/maps").read_text()
        for name in ("numpy", "libcrypto"):
            assert name not in maps
        # Where huge pages are the default a thread's stack alone would be one.
        assert re.search(r"^THP_enabled:\s*0$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)


def _resident_kib(pid: int) -> int:
    """Exact, which VmRSS is not: the kernel counts that one per processor."""
    match = re.search(r"^Rss:\s*(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)
    assert match is not None
    return int(match[1])


def _crash(machine: FakeMachine) -> None:
    """A dump of some size, which has to be read to see that it is not what was written."""
    size = 8 << 20
    elsewhere = FakeMachine(machine.root.parent / "elsewhere")
    folder = elsewhere.crash("a", dump=FileRecord(name="vmcore", size_bytes=size, sha256="ab" * 32))
    (folder / "vmcore").write_bytes(b"KDUMP   " + bytes(size - 8))
    folder.rename(machine.root / "var/crash/a")


def test_it_imports_nothing_that_it_does_not_need() -> None:
    """Each of these is 0.1 to 3 MB for as long as the machine runs."""
    script = (
        "import sys, kdumpd.service.__main__, kdumpd.config.own_memory as memory; memory.spare_openssl(); "
        "import kdumpd.service.daemon; print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=TOP)
    wasted = {"argparse", "cryptography", "difflib", "gzip", "lzma", "numpy", "paramiko", "random", "ssl", "zstandard"}
    assert not wasted & set(done.stdout.split())
