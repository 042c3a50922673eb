# SPDX-License-Identifier: GPL-2.0-or-later
"""kdumpctl with a service: it follows jobs, cancels them, and follows the state."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from bus_bench import TOP, Bus, Service, wait
from fake_machine import FakeMachine


def _start(bus: Bus, *words: str, **options: object) -> subprocess.Popen[str]:
    environ = {**os.environ, "DBUS_SYSTEM_BUS_ADDRESS": bus.address, "LC_ALL": "C.UTF-8", "PYTHONUNBUFFERED": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    return subprocess.Popen(  # type: ignore[call-overload,no-any-return]
        [sys.executable, "-m", "kdumpd.cli", *words], text=True, env=environ, cwd=TOP, **pipes
    )


class Lines:
    """What a process prints to a file, as it comes."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def wait_for(self, pattern: str) -> None:
        wait(lambda: re.search(pattern, self.path.read_text()), f"{pattern!r} in: {self.path.read_text()}")


@pytest.fixture
def watch(service: Service, tmp_path: Path) -> Iterator[Callable[..., Lines]]:
    """kdumpctl watch, its output in a file."""
    running: list[subprocess.Popen[str]] = []

    def start(*words: str) -> Lines:
        path = tmp_path / f"watch{len(running)}"
        with path.open("w") as file:
            running.append(_start(service.bus, "watch", *words, stdout=file, stderr=file))
        return Lines(path)

    yield start
    for process in running:
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0


def test_watch_follows_the_state(service: Service, machine: FakeMachine, watch: Callable[..., Lines]) -> None:
    text, facts = watch(), watch("--json")
    text.wait_for(r"armed \(loaded\)")
    facts.wait_for('"state": "loaded"')
    assert _start(service.bus, "unload").wait(60) == 0
    text.wait_for(r"NOT ARMED \(unloaded\): The capture kernel was unloaded on request")
    machine.crash("host-20260101T000000Z")
    text.wait_for("CrashAdded host-20260101T000000Z complete")
    facts.wait_for('"event": "CrashAdded", "words": ."host-20260101T000000Z", "complete".')
    service.stop()
    text.wait_for("does not run; waiting for it")
    service.start()
    wait(lambda: text.path.read_text().count("unloaded") >= 2, "the state after the restart")
    whole, _, _ = facts.path.read_text().rpartition("\n")  # it may be writing the next line
    assert all(json.loads(line) for line in whole.splitlines() if line.startswith("{"))


def test_a_reader_that_leaves_ends_watch(service: Service) -> None:
    process = _start(service.bus, "watch")
    assert process.stdout is not None
    assert process.stderr is not None
    assert "armed" in process.stdout.readline()
    process.stdout.close()
    assert _start(service.bus, "unload").wait(60) == 0
    assert process.wait(60) == 1
    assert process.stderr.read() == ""


def _until_it_builds(terminal: int) -> None:
    """Waits until kdumpctl shows what the service does: it has its answer, and follows the job."""
    shown = b""
    while b"building" not in shown:
        shown += os.read(terminal, 4096)


def test_a_job_shows_how_far_it_is(service: Service, machine: FakeMachine) -> None:
    (machine.root / "slow").touch()
    main, other = pty.openpty()
    done = _start(service.bus, "rebuild", stderr=other)
    os.close(other)
    _until_it_builds(main)
    (machine.root / "slow").unlink()
    assert done.communicate(timeout=180)[0] == "● kdumpd: armed (loaded)\n"
    assert done.returncode == 0
    os.close(main)


def test_interrupting_kdumpctl_cancels_the_job(service: Service, machine: FakeMachine) -> None:
    before = machine.image_id()
    (machine.root / "slow").touch()
    done = _start(service.bus, "rebuild")
    wait(lambda: service.client.get("Activity") == "building", "the build")
    done.send_signal(signal.SIGINT)
    _, err = done.communicate(timeout=180)
    assert done.returncode == 1
    assert "was cancelled" in err
    (machine.root / "slow").unlink()
    service.wait_state("loaded")
    assert machine.image_id() == before


def test_a_service_that_dies_is_said(service: Service, machine: FakeMachine) -> None:
    (machine.root / "slow").touch()
    main, other = pty.openpty()
    done = _start(service.bus, "rebuild", stderr=other)
    os.close(other)
    _until_it_builds(main)
    service.stop(signal.SIGKILL)
    said = b""
    with contextlib.suppress(OSError):  # how the end of a terminal is told
        while data := os.read(main, 4096):
            said += data
    assert done.wait(60) == 1
    os.close(main)
    line = next(line for line in said.decode().splitlines() if "kdumpctl:" in line)
    assert line.endswith("kdumpctl: The service kdumpd ended while it worked")


def _kdumpctl(bus: Bus, *words: str) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, "DBUS_SYSTEM_BUS_ADDRESS": bus.address, "LC_ALL": "C.UTF-8", "TZ": "UTC"}
    return subprocess.run(
        [sys.executable, "-m", "kdumpd.cli", *words],
        capture_output=True, text=True, check=False, env=environ, cwd=TOP, timeout=180,
    )  # fmt: skip


def test_kdumpctl_asks_the_service(service: Service, machine: FakeMachine) -> None:
    done = _kdumpctl(service.bus)
    assert done.returncode == 0
    assert done.stdout.startswith("● kdumpd: armed (loaded)")
    assert "does not answer" not in done.stdout
    facts = json.loads(_kdumpctl(service.bus, "status", "--json").stdout)
    assert facts["service"] is True
    assert facts["image_id"] == machine.image_id()
    assert _kdumpctl(service.bus, "unload").stdout.startswith("○ kdumpd: NOT ARMED: The capture kernel was unloaded")
    assert _kdumpctl(service.bus, "status").returncode == 3
    done = _kdumpctl(service.bus, "load")
    assert (done.returncode, done.stdout) == (0, "● kdumpd: armed (loaded)\n")


def test_kdumpctl_shows_the_services_error(service: Service, machine: FakeMachine) -> None:
    machine.config("path relative\n")
    done = _kdumpctl(service.bus, "reload")
    assert done.returncode == 1
    assert done.stderr.startswith("kdumpctl: /etc/kdump.conf:1: path must begin with a slash")
    assert "\n  mend that line" in done.stderr
