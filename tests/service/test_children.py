# SPDX-License-Identifier: GPL-2.0-or-later
"""The service and its children: killed while they work, and a loop that answers meanwhile."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

from bus_bench import Client, Service, wait
from fake_machine import RELEASE, FakeKernel, FakeMachine
from gi.repository import Gio, GLib

_LOOP_SECONDS = 0.05


def test_the_loader_is_another_process(start: Callable[..., Service], machine: FakeMachine) -> None:
    service = start(processes=True)
    service.wait_state("loaded")
    assert (machine.root / "loads").read_text() == "2\n"
    service.client.call("Unload")
    assert service.client.get("Loaded") is False
    service.client.call("Load")
    assert service.client.get("State") == "loaded"


def test_killed_at_any_moment_it_comes_back_to_the_same_state(
    start: Callable[..., Service], machine: FakeMachine
) -> None:
    """Its child goes on loading without it. Nothing that is ready is made again, and no wrong word is said."""
    service = start(processes=True)
    service.wait_state("loaded")
    image = machine.root / "var/lib/kdumpd" / RELEASE / "initrd"
    kernel = FakeKernel(machine)
    for number, delay in enumerate((0.0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.6)):
        machine.config(f"commandline_append killed={number}\n")
        inode = image.stat().st_ino
        service.client.connection.call(
            "org.kdumpd.Kdump1", "/org/kdumpd/Kdump1", "org.kdumpd.Kdump1.Manager", "Reload", None, None,
            Gio.DBusCallFlags.NONE, 5000, None, None,
        )  # fmt: skip
        service.client.connection.flush_sync(None)
        time.sleep(delay)
        service.stop(signal.SIGKILL)
        service.start()
        assert service.client.get("State") in ("loaded", "loaded-stale", "unloaded")
        service.wait_state("loaded")
        # The loader of the service that was killed may have been slower than the next service.
        wait(kernel.held, "what the kernel holds")
        held = kernel.held()
        record = json.loads((machine.root / "run/kdumpd/loaded.json").read_text())
        assert held is not None
        assert held["cmdline"].endswith(f" killed={number}")
        assert held == {"initrd_sha256": record["initrd_sha256"], "cmdline": record["cmdline"]}
        assert image.stat().st_ino == inode, "a needless build"
    loads = len((machine.root / "loads").read_text().split())
    assert loads <= 1 + 2 * 10, "each change is one load, and one more where the kill interrupted it"


def test_killed_while_it_rests_it_touches_nothing(start: Callable[..., Service], machine: FakeMachine) -> None:
    service = start(processes=True)
    service.wait_state("loaded")
    for _ in range(3):
        service.stop(signal.SIGKILL)
        service.start()
        service.wait_state("loaded")
    assert (machine.root / "loads").read_text() == "2\n"


def test_after_a_boot_it_is_loaded_before_the_service_answers(
    start: Callable[..., Service], machine: FakeMachine
) -> None:
    service = start(processes=True)
    service.wait_state("loaded")
    wait((machine.root / "var/lib/kdumpd/ready.json").exists, "the note of what is loaded")
    service.stop()
    machine.write("proc/sys/kernel/random/boot_id", "another boot\n")
    machine.crash_loaded(False)
    before = service.log.stat().st_size
    service.start()
    assert service.client.get("State") == "loaded"
    service.wait_state("loaded")
    assert (machine.root / "loads").read_text() == "2\n2\n"
    said = service.log.read_bytes()[before:].decode()
    assert said.count("Loaded the capture kernel") == 1
    assert "Not armed" not in said


def _kept_waiting(*pids: int) -> float:
    """Seconds for which the threads of these processes were ready to run and had no processor (schedstat)."""
    waited = 0
    for pid in pids:
        for task in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(OSError):  # a thread that ended
                waited += int((task / "schedstat").read_text().split()[1])
    return waited / 1e9


def _worst_answer(service: Service) -> tuple[int, float]:
    """While the service builds and loads: how many calls were answered, and the longest time one took.

    What the processors were busy with otherwise does not count.
    """
    client = Client(service.bus.address)
    pids = (service.process.pid, service.bus.pid, os.getpid())
    times: list[float] = []
    deadline = time.monotonic() + 120
    while client.get("Activity") or client.get("State") != "loaded":
        assert time.monotonic() < deadline
        waited, begin = _kept_waiting(*pids), time.monotonic()
        client.get("Activity")
        times.append(time.monotonic() - begin - (_kept_waiting(*pids) - waited))
        time.sleep(0.002)
    return len(times), max(times)


def test_the_loop_answers_while_a_build_and_a_load_run(start: Callable[..., Service]) -> None:
    """Within 50 ms. What blocks the loop does so each time; noise of the machine does not come eight times."""
    service = start(real_builder=True, processes=True)
    wait(lambda: service.client.get("Activity") == "building", "the build")
    found = []
    for _ in range(8):
        found.append(_worst_answer(service))
        if found[-1][1] < _LOOP_SECONDS:
            break
        service.client.call("StartJob", args=GLib.Variant("(s)", ("rebuild",)))
        wait(lambda: service.client.get("Activity"), "the next build")
    calls, worst = found[-1]
    assert calls > 100
    assert worst < _LOOP_SECONDS, found
