# SPDX-License-Identifier: GPL-2.0-or-later
"""A private system bus, a machine of files, and the daemon on both."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))

from bus_bench import OPEN, SYSTEM, TOP, Bus, Service  # its folder has to be found first
from fake_machine import FakeMachine


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that another user can reach into: pytest's own is closed to others."""
    path = Path(tempfile.mkdtemp(prefix="kdumpd-bus-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def bus(folder: Path) -> Iterator[Bus]:
    """A bus where everybody may do everything."""
    (folder / "bus").mkdir()
    found = Bus(folder / "bus", OPEN)
    yield found
    found.stop()


@pytest.fixture
def system_bus(folder: Path) -> Iterator[Bus]:
    """A bus with the rules of a system bus and the policy that is shipped."""
    (folder / "system").mkdir()
    found = Bus(folder / "system", SYSTEM.format(policy=TOP / "units/org.kdumpd.Kdump1.conf"))
    yield found
    found.stop()


@pytest.fixture
def machine(folder: Path) -> FakeMachine:
    """A machine with crashkernel=256M and no image."""
    return FakeMachine(folder / "machine")


@pytest.fixture
def start(bus: Bus, machine: FakeMachine) -> Iterator[Callable[..., Service]]:
    """Starts the daemon on `machine`, and ends it after the test."""
    started: list[Service] = []

    def begin(on: Bus | None = None, **options: bool) -> Service:
        service = Service(machine, on or bus, **options)
        started.append(service)
        return service

    yield begin
    for service in started:
        if service.process.poll() is None:
            service.stop()
        service.notify.close()


@pytest.fixture
def service(start: Callable[..., Service]) -> Service:
    """The daemon, armed."""
    found = start()
    found.wait_state("loaded")
    return found
