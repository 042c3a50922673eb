# SPDX-License-Identifier: GPL-2.0-or-later
"""TestCrash on the bus: the tag, the crash, and what is said of it after the next boot.

The machine is one of files: its /proc/sysrq-trigger takes what would have crashed a real one, which goes on.
"""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bus_bench import ERROR, INTERFACE, TOP, Bus, Client, Service, as_nobody, wait
from fake_machine import BOOT_ID, FakeMachine

from kdumpd.errors import KdumpError
from kdumpd.loader import crash as crashing
from kdumpd.service.missed import leave_tag

LATER = "99999999-0000-0000-0000-000000000000"


@pytest.fixture
def trigger(machine: FakeMachine) -> Path:
    """Where the crash is written to."""
    machine.write("proc/sysrq-trigger", "")
    machine.write("dev/kmsg", "")
    return machine.root / "proc/sysrq-trigger"


def _reboot(service: Service, machine: FakeMachine) -> None:
    if service.process.poll() is None:
        service.stop()
    machine.write("proc/sys/kernel/random/boot_id", LATER + "\n")
    for path in (machine.root / "run/kdumpd").glob("*.json"):
        path.unlink()
    machine.crash_loaded(False)
    service.start()


def _dump(machine: FakeMachine, name: str, log: str) -> None:
    folder = machine.crash(name, image_id=machine.image_id())
    with (folder / "vmcore-dmesg.txt").open("a") as file:
        file.write(f"[    2.0] {log}")


def _test(client: Client) -> dict[str, Any]:
    found: dict[str, Any] = client.get("LastTest")
    return found


def test_the_machine_crashes_and_the_dump_is_known(service: Service, machine: FakeMachine, trigger: Path) -> None:
    test = service.client.call("TestCrash")[0]
    tag = json.loads((machine.root / "var/lib/kdumpd/tag.json").read_text())
    assert (tag["id"], tag["boot_id"]) == (test, BOOT_ID)
    assert service.client.error("TestCrash")[0] == ERROR + "Busy"
    wait(lambda: trigger.read_text() == "c\n", "the crash")
    # Who asked has had a second to hear of it. (The clock that stamps files is some milliseconds behind.)
    assert trigger.stat().st_mtime_ns / 1000 - tag["time_usec"] > 0.9e6
    log = (machine.root / "dev/kmsg").read_text()
    assert test in log
    service.stop(9)  # as the crash would have
    machine.write("var/lib/kdumpd/tag.json", json.dumps(tag))
    machine.crash("host-20260101T000000Z", crash_time_usec=1_900_000_000_000_000)  # another one, and a newer one
    _dump(machine, "host-20260102T000000Z", log)
    _reboot(service, machine)
    wait(lambda: _test(service.client), "the outcome")
    assert _test(service.client) == {
        "id": test,
        "time_usec": tag["time_usec"],
        "outcome": "complete",
        "crash": "host-20260102T000000Z",
    }
    assert f"test {test}, left a dump (complete)" in service.log.read_text()
    assert "no dump of it is here" not in service.log.read_text()


def test_a_dump_that_did_not_come_is_said_and_may_come_later(
    service: Service, machine: FakeMachine, trigger: Path
) -> None:
    test = leave_tag(machine.root / "var/lib/kdumpd", BOOT_ID)
    _reboot(service, machine)
    wait(lambda: _test(service.client), "the outcome")
    assert (_test(service.client)["outcome"], "crash" in _test(service.client)) == ("missing", False)
    assert "crash-without-dump" in [reason["code"] for reason in service.client.get("Reasons")]
    machine.crash("host-20260101T000000Z")  # any crash
    wait(lambda: "host-20260101" in service.log.read_text(), "the crash")
    assert _test(service.client)["outcome"] == "missing"
    _dump(machine, "host-20260102T000000Z", crashing.log_line(test) + "\n")
    wait(lambda: _test(service.client)["outcome"] == "complete", "the right crash")
    assert _test(service.client)["crash"] == "host-20260102T000000Z"


def test_a_machine_that_is_not_armed_is_not_crashed(service: Service, machine: FakeMachine, trigger: Path) -> None:
    service.client.call("Unload")
    name, text = service.client.error("TestCrash")
    assert (name, text.splitlines()[0]) == (ERROR + "NotArmed", "This machine is not armed: no dump would come")
    assert not (machine.root / "var/lib/kdumpd/tag.json").exists()
    assert trigger.read_text() == ""


def test_without_a_tag_nothing_is_crashed(service: Service, machine: FakeMachine, trigger: Path) -> None:
    (machine.root / "var/lib/kdumpd/tag.json").mkdir()
    name, text = service.client.error("TestCrash")
    assert name == ERROR + "Failed"
    assert "the tag of the test cannot be left" in text
    assert trigger.read_text() == ""


def test_nobody_else_crashes_it(service: Service, machine: FakeMachine, trigger: Path) -> None:
    assert as_nobody(service.bus.address, f"{INTERFACE}.TestCrash") == [ERROR + "Denied"]
    assert not (machine.root / "var/lib/kdumpd/tag.json").exists()


def test_a_crash_that_fails_is_said_and_not_missed_after_the_next_boot(
    service: Service, machine: FakeMachine, trigger: Path
) -> None:
    trigger.unlink()
    trigger.mkdir()
    test = service.client.call("TestCrash")[0]
    tag = machine.root / "var/lib/kdumpd/tag.json"
    wait(lambda: f"The test crash {test} did not happen" in service.log.read_text(), "the journal")
    assert "Is a directory" in service.log.read_text()
    assert not tag.exists()
    _reboot(service, machine)
    service.wait_state("loaded")
    assert service.client.get("LastTest") == {}
    assert "crash-without-dump" not in [reason["code"] for reason in service.client.get("Reasons")]


@pytest.mark.parametrize(
    ("tag", "words"),
    [
        (None, "Nobody asked"),
        ({"id": "x", "boot_id": LATER, "time_usec": 0}, "over, or of another boot"),
        ({"id": "x", "boot_id": BOOT_ID, "time_usec": 0}, "over, or of another boot"),
        ({"boot_id": BOOT_ID}, "Nobody asked"),
    ],
)
def test_the_unit_alone_crashes_nothing(
    machine: FakeMachine, trigger: Path, tag: dict[str, object] | None, words: str
) -> None:
    machine.crash_loaded(True)
    if tag is not None:
        machine.write("var/lib/kdumpd/tag.json", json.dumps(tag))
    with pytest.raises(KdumpError, match=words):
        crashing.crash(machine.root)
    assert trigger.read_text() == ""


def test_nothing_loaded_nothing_crashed(machine: FakeMachine, trigger: Path) -> None:
    machine.crash_loaded(False)
    (machine.root / "var/lib/kdumpd").mkdir(parents=True, exist_ok=True)
    leave_tag(machine.root / "var/lib/kdumpd", BOOT_ID)
    with pytest.raises(KdumpError, match="No capture kernel is loaded"):
        crashing.crash(machine.root)
    assert trigger.read_text() == ""


def _kdumpctl(bus: Bus, *words: str, **options: Any) -> subprocess.Popen[str]:
    environ = {**os.environ, "DBUS_SYSTEM_BUS_ADDRESS": bus.address, "LC_ALL": "C.UTF-8"}
    return subprocess.Popen(
        [sys.executable, "-m", "kdumpd.cli", "test", *words],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environ, cwd=TOP, **options,
    )  # fmt: skip


def test_kdumpctl_asks_its_question_and_then_the_service(
    service: Service, trigger: Path, start: Callable[..., Service]
) -> None:
    refused = _kdumpctl(service.bus, stdin=subprocess.DEVNULL)
    assert "Nothing was done" in refused.communicate(timeout=180)[1]
    assert trigger.read_text() == ""
    main, other = pty.openpty()
    asked = _kdumpctl(service.bus, stdin=other)
    os.write(main, os.uname().nodename.encode() + b"\n")
    assert asked.stdout is not None
    out = next(line for line in asked.stdout if "after the next boot" in line)
    wait(lambda: trigger.read_text() == "c\n", "the crash")
    asked.terminate()  # as the crash would have
    asked.communicate(timeout=180)
    tag = json.loads((service.machine.root / "var/lib/kdumpd/tag.json").read_text())
    assert f"after the next boot the service says what became of test {tag['id']}" in out
    for end in (main, other):
        os.close(end)


def test_kdumpctl_says_why_not(service: Service, trigger: Path) -> None:
    service.client.call("Unload")
    done = _kdumpctl(service.bus, "--force")
    assert done.communicate(timeout=180)[1].startswith("kdumpctl: This machine is not armed: no dump would come")
