# SPDX-License-Identifier: GPL-2.0-or-later
"""A target on the network, as the service sees it: a real sshd that comes, goes, and lies about its key."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from bus_bench import Service, wait
from fake_machine import FakeMachine
from lab.sshd import Sshd, public

REPORT = "run/kdumpd/targets.json"


@pytest.fixture
def server(folder: Path) -> Iterator[Sshd]:
    found = Sshd(folder / "sshd").start()
    yield found
    found.close()


@pytest.fixture
def dumps(folder: Path) -> Path:
    path = folder / "dumps"
    path.mkdir()
    return path


@pytest.fixture
def account(machine: FakeMachine, server: Sshd, dumps: Path) -> str:
    """kdump.conf names the server, whose key is pinned and knows ours; its name there."""
    ssh = machine.root / "etc/kdumpd/ssh"
    ssh.mkdir(parents=True)
    shutil.copy(server.key, ssh / "id_ed25519")
    (ssh / "known_hosts").write_text(f"[127.0.0.1]:{server.port} {public(server.host_key)}\n")
    machine.config(f"ssh root@127.0.0.1:{server.port}\npath {dumps}\n")
    return f"root@127.0.0.1:{server.port}"


def report(machine: FakeMachine) -> list[dict[str, object]]:
    with contextlib.suppress(OSError, ValueError):
        found: list[dict[str, object]] = json.loads((machine.root / REPORT).read_text())["targets"]
        return found
    return []


def tried(machine: FakeMachine, result: str) -> Callable[[], bool]:
    return lambda: [one["result"] for one in report(machine)] == [result]


def codes(service: Service) -> list[str]:
    return [reason["code"] for reason in service.client.get("Reasons")]


def reason(service: Service, code: str) -> str:
    return next(str(one["sentence"]) for one in service.client.get("Reasons") if one["code"] == code)


def test_a_target_that_comes_and_goes(
    start: Callable[..., Service], machine: FakeMachine, server: Sshd, account: str, dumps: Path
) -> None:
    service = start()
    wait(tried(machine, "works"), "the first trial")
    assert isinstance(report(machine)[0]["free_bytes"], int)
    assert (machine.root / REPORT).stat().st_mode & 0o777 == 0o600
    assert list(dumps.iterdir()) == [], "the trial left something"
    service.wait_state("loaded", 30)
    assert "target-unreachable" not in codes(service)

    server.stop()
    service.client.call("Reload", ms=60_000)
    wait(lambda: "target-unreachable" in codes(service), "the reason", 60)
    assert account in reason(service, "target-unreachable")
    assert service.client.get("State") == "loaded", "a network that fails unloads nothing"

    server.start()
    service.client.call("Reload", ms=60_000)
    wait(lambda: "target-unreachable" not in codes(service), "the end of the reason", 60)
    assert service.stop() == 0


def test_a_server_with_another_key_is_no_target(
    start: Callable[..., Service], machine: FakeMachine, account: str
) -> None:
    pinned = machine.root / "etc/kdumpd/ssh/known_hosts"
    name, kind, key = pinned.read_text().split()
    pinned.write_text(f"{name} {kind} {key[:-8]}AAAAAAA=\n")
    service = start()
    wait(lambda: "target-unreachable" in codes(service), "the reason", 60)
    assert service.stop() == 0


def test_it_is_tried_rarely_and_after_hints(start: Callable[..., Service], machine: FakeMachine, account: str) -> None:
    """The tick of this service comes more often than that of a real one; no trial comes of it."""
    (machine.root / "run/systemd/netif/links").mkdir(parents=True)
    service = start()
    wait(tried(machine, "works"), "the first trial")
    service.wait_state("loaded", 30)
    # The image that was loaded meanwhile was one trial more.
    wait(_quiet(machine, service), "an end of trials", 60)
    before = os.stat(machine.root / REPORT).st_mtime_ns
    service.client.call("Load")
    assert _quiet(machine, service, seconds=3.0)()
    assert os.stat(machine.root / REPORT).st_mtime_ns == before
    (machine.root / "run/systemd/netif/links/2").write_text("OPER_STATE=routable\n")
    wait(lambda: os.stat(machine.root / REPORT).st_mtime_ns != before, "the trial after the hint", 60)
    assert service.stop() == 0


def _quiet(machine: FakeMachine, service: Service, seconds: float = 2.0) -> Callable[[], bool]:
    """Whether no trial runs, begins or ends for so long, which is several ticks of this service."""

    def trials() -> list[str]:
        tasks = Path(f"/proc/{service.process.pid}/task").iterdir()
        return [pid for task in tasks for pid in (task / "children").read_text().split()]

    def check() -> bool:
        first = os.stat(machine.root / REPORT).st_mtime_ns
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # a thread that ended
                if trials():
                    return False
            time.sleep(0.05)
        return os.stat(machine.root / REPORT).st_mtime_ns == first

    return check


def test_a_second_target_that_works_keeps_it_a_warning(
    start: Callable[..., Service], machine: FakeMachine, server: Sshd, account: str
) -> None:
    server.stop()
    config = machine.root / "etc/kdump.conf"
    uuid = next((machine.root / "dev/disk/by-uuid").iterdir()).name
    machine.config(config.read_text() + f"ext4 UUID={uuid}\n")
    service = start()
    wait(lambda: "target-degraded" in codes(service), "the warning", 60)
    assert account in reason(service, "target-degraded")
    assert "target-unreachable" not in codes(service)
    assert service.stop() == 0
