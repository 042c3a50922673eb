# SPDX-License-Identifier: GPL-2.0-or-later
"""The daemon as a process: it stays small, is stopped, killed, started twice, and lives without a bus."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from bus_bench import (
    OPEN,
    TOP,
    Bus,
    Client,
    Service,
    wait,
)
from fake_machine import RELEASE, FakeMachine
from gi.repository import GLib


def _resident_kib(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    raise AssertionError("no VmRSS")


def test_memory_stays_flat(service: Service) -> None:
    """Stock pydbus on GLib before 2.84 grows by 2.1 kB a call: 12 MB over this many."""

    def calls(count: int) -> None:
        for _ in range(count):
            service.client.get("State")
            service.client.error("ListCrashes", args=GLib.Variant("(s)", ("x",)))
        for _ in range(count // 10):
            service.client.call("ListCrashes")

    calls(1000)
    before = _resident_kib(service.process.pid)
    calls(6000)
    assert _resident_kib(service.process.pid) - before < 2500


def test_stopping_leaves_the_capture_kernel_loaded(service: Service, machine: FakeMachine) -> None:
    assert service.stop() == 0
    assert (machine.root / "sys/kernel/kexec_crash_loaded").read_text() == "1\n"
    service.notify.wait_for("STOPPING=1")
    record = (machine.root / "run/kdumpd/loaded.json").read_text()
    service.start()
    service.wait_state("loaded")
    assert (machine.root / "run/kdumpd/loaded.json").read_text() == record


def test_a_killed_service_comes_back_to_the_same_state(service: Service, machine: FakeMachine) -> None:
    before = service.client.all()
    initrd = (machine.root / "var/lib/kdumpd" / RELEASE / "initrd").stat().st_ino
    service.stop(signal.SIGKILL)
    service.start()
    service.wait_state("loaded")
    assert service.client.all() == before
    assert (machine.root / "var/lib/kdumpd" / RELEASE / "initrd").stat().st_ino == initrd


def test_the_service_manager_hears_what_it_needs(service: Service, machine: FakeMachine) -> None:
    messages = service.notify.messages
    for text in ("READY=1\nSTATUS=", "STATUS=building", "STATUS=armed (loaded)"):
        wait(lambda text=text: any(message.startswith(text) for message in messages), text)
    service.notify.wait_for("WATCHDOG=1")
    machine.config("path relative\n")
    os.kill(service.process.pid, signal.SIGHUP)
    service.notify.wait_for("RELOADING=1\nMONOTONIC_USEC=")
    service.notify.wait_for("READY=1")
    service.wait_state("loaded-stale")
    assert "kdump.conf:1" in service.client.get("Reasons")[0]["sentence"]


def test_a_second_service_is_kept_from_the_name(service: Service, start: Callable[..., Service]) -> None:
    log = service.log.read_text()
    second = start()
    wait(lambda: "cannot be had" in second.log.read_text()[len(log) :], "a word about the name")
    assert second.client.get("State") == "loaded"
    second.stop()


def test_without_a_bus_the_machine_is_armed_and_the_bus_found_later(folder: Path, machine: FakeMachine) -> None:
    (folder / "late").mkdir()
    late = Bus(folder / "late", OPEN)
    late.stop()
    (folder / "late/bus").unlink(missing_ok=True)
    environ = {key: value for key, value in os.environ.items() if key != "JOURNAL_STREAM"}
    words = [sys.executable, str(TOP / "tests/service/daemon.py"), str(machine.root), late.address]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(words, stderr=log, env=environ, cwd=TOP)
    try:
        wait((machine.root / "run/kdumpd/loaded.json").exists, "a load without a bus")
        assert "No D-Bus" in (folder / "log").read_text()
        again = Bus(folder / "late", OPEN)
        try:

            def answers() -> bool:
                try:
                    return bool(Client(again.address).get("State") == "loaded")
                except GLib.Error:
                    return False

            wait(answers, "an answer on the late bus")
            again.stop()
            assert process.poll() is None
        finally:
            again.stop()
        machine.crash_loaded(False)  # a change while there is no bus
        wait(lambda: (machine.root / "sys/kernel/kexec_crash_loaded").read_text() == "1\n", "a load without a bus")
        again = Bus(folder / "late", OPEN)
        try:
            wait(answers, "an answer after a restart of the bus")
            machine.reserve("64M")
            client = Client(again.address)
            wait(lambda: client.get("State") == "reserved-too-small", "a change after a restart of the bus")
        finally:
            again.stop()
    finally:
        process.terminate()
        assert process.wait(60) == 0
