# SPDX-License-Identifier: GPL-2.0-or-later
"""kdumpctl asks for work while no service runs: the bus has one started, which may take long on a slow machine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from bus_bench import HERE, NAME, OPEN, TOP, Bus, runs, wait
from fake_machine import FakeMachine

# What the bus waits for a service, and what this one takes: longer than that, and than kdumpctl waits for an answer.
_BUS_MS = 2000
_SLOW_SECONDS = 6.5
# As systemd does it: a service that is slow to start is not started twice, and not ended because the bus gave it up.
_STARTER = """#!/bin/sh
mkdir "{folder}/began" 2>/dev/null || exit 0
setsid sh -c 'echo $$ >"{folder}/pid"; {first}; exec "{python}" "{daemon}" "{root}" "{address}"' \\
    </dev/null >"{folder}/log" 2>&1 &
"""


class Activating:
    """A bus that starts the service when it is asked for; `first` is what happens before."""

    def __init__(self, folder: Path, machine: FakeMachine, first: str) -> None:
        self.folder = folder
        services = folder / "services"
        services.mkdir(parents=True)
        starter = folder / "starter"
        (services / f"{NAME}.service").write_text(f"[D-BUS Service]\nName={NAME}\nExec={starter}\n")
        limit = f'<servicedir>{services}</servicedir><limit name="service_start_timeout">{_BUS_MS}</limit>'
        self.bus = Bus(folder, OPEN + limit)
        words = {"folder": folder, "python": sys.executable, "daemon": HERE / "daemon.py", "root": machine.root}
        starter.write_text(_STARTER.format(**words, address=self.bus.address, first=first))
        starter.chmod(0o755)

    def ctl(self, *words: str) -> subprocess.CompletedProcess[str]:
        """kdumpctl on this bus."""
        environ = {**os.environ, "DBUS_SYSTEM_BUS_ADDRESS": self.bus.address, "LC_ALL": "C.UTF-8"}
        command = [sys.executable, "-m", "kdumpd.cli", *words]
        return subprocess.run(command, capture_output=True, text=True, env=environ, cwd=TOP, timeout=120, check=False)

    def stop(self) -> None:
        """Ends what was started, then the bus."""
        pid = self.folder / "pid"
        if pid.exists():
            group = int(pid.read_text())
            os.killpg(group, signal.SIGTERM)
            wait(lambda: not runs(group), "the end of the service")
        self.bus.stop()


@pytest.fixture
def slow(folder: Path, machine: FakeMachine) -> Iterator[Activating]:
    found = Activating(folder / "activating", machine, f"sleep {_SLOW_SECONDS}")
    yield found
    found.stop()


def test_a_service_that_is_slow_to_start_is_waited_for(slow: Activating, machine: FakeMachine) -> None:
    looked = slow.ctl("status")  # nobody is started for a look
    assert "The service kdumpd does not answer" in " ".join((looked.stdout + looked.stderr).split()), looked
    assert not (slow.folder / "pid").exists()
    done = slow.ctl("load")
    assert done.returncode == 0, done.stderr + (slow.folder / "log").read_text()
    assert "armed (loaded)" in done.stdout
    assert (machine.root / "sys/kernel/kexec_crash_loaded").read_text() == "1\n"


def test_a_service_that_never_starts_is_a_sentence(folder: Path, machine: FakeMachine) -> None:
    broken = Activating(folder / "activating", machine, "true")
    (broken.folder / "starter").write_text("#!/bin/sh\nexit 1\n")
    done = broken.ctl("reload")
    broken.stop()
    assert done.returncode == 1
    assert done.stderr.startswith("kdumpctl: The service kdumpd ")
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) == 2, done.stderr
