# SPDX-License-Identifier: GPL-2.0-or-later
"""Jobs on a private bus: started, followed, cancelled; and the loop that answers while they run."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Callable
from typing import Any

import pytest
from bus_bench import INTERFACE, NAME, PATH, PROPERTIES, TOP, Client, Service, wait
from fake_machine import RELEASE, FakeMachine
from gi.repository import Gio, GLib

ERROR = "org.kdumpd.Kdump1.Error."
JOB = "org.kdumpd.Kdump1.Job"


class Follower:
    """Starts a job and hears what it says."""

    def __init__(self, client: Client, kind: str) -> None:
        self._bus = client.connection
        self.changes: list[dict[str, Any]] = []
        self.ends: list[tuple[str, str, str]] = []
        flags = Gio.DBusSignalFlags.NONE
        self._bus.signal_subscribe(None, PROPERTIES, "PropertiesChanged", None, JOB, flags, self._changed)
        self._bus.signal_subscribe(None, JOB, "Completed", None, None, flags, self._completed)
        (self.path,) = client.call("StartJob", args=GLib.Variant("(s)", (kind,)))

    def _changed(self, *arguments: Any) -> None:
        if arguments[2] == self.path:
            self.changes.append(arguments[5].unpack()[1])

    def _completed(self, *arguments: Any) -> None:
        if arguments[2] == self.path:
            self.ends.append(arguments[5].unpack())

    def call(self, interface: str, method: str, args: GLib.Variant | None = None) -> Any:
        """Calls a method of the job."""
        return self._bus.call_sync(NAME, self.path, interface, method, args, None, 0, 5000, None).unpack()

    def all(self) -> dict[str, Any]:
        """Its properties."""
        found: dict[str, Any] = self.call(PROPERTIES, "GetAll", GLib.Variant("(s)", (JOB,)))[0]
        return found

    def wait_end(self) -> tuple[str, str, str]:
        """What Completed said."""
        context = GLib.MainContext.default()
        wait(lambda: (context.iteration(False), self.ends)[1], f"the end of {self.path}")
        (end,) = self.ends
        return end


def test_a_job_is_followed_to_its_end(service: Service, machine: FakeMachine) -> None:
    inode = (machine.root / "var/lib/kdumpd" / RELEASE / "initrd").stat().st_ino
    machine.write("slow", "")
    job = Follower(service.client, "rebuild")
    assert job.path.startswith(f"{PATH}/job/")
    wait(lambda: job.all()["Phase"] == "building", "the build")
    found = job.all()
    assert (found.pop("ErrorName"), found.pop("ErrorMessage")) == ("", "")
    assert found == {"Kind": "rebuild", "State": "running", "Phase": "building", "Progress": 0.0}
    (machine.root / "slow").unlink()
    assert job.wait_end() == ("done", "", "")
    assert (machine.root / "var/lib/kdumpd" / RELEASE / "initrd").stat().st_ino != inode
    assert [change["Phase"] for change in job.changes if "Phase" in change] == ["building", "loading"]
    assert job.changes[-1]["State"] == "done"
    assert (job.all()["State"], job.all()["Progress"]) == ("done", 1.0)


def test_a_job_that_fails_says_why(service: Service, machine: FakeMachine) -> None:
    machine.write("fail", "No room on the disk")
    job = Follower(service.client, "rebuild")
    state, name, message = job.wait_end()
    assert (state, name) == ("failed", ERROR + "Build")
    assert message == "No room on the disk\ndf -h /var/lib"
    assert job.all()["ErrorMessage"] == message
    assert service.client.get("Armed") is True


def test_a_build_is_cancelled_and_what_is_armed_stays(service: Service, machine: FakeMachine) -> None:
    image = machine.image_id()
    machine.write("slow", "")
    job = Follower(service.client, "rebuild")
    wait(lambda: job.all()["Phase"] == "building", "the build")
    queued = Follower(service.client, "load")
    assert queued.all()["State"] == "queued"
    queued.call(JOB, "Cancel")
    assert queued.wait_end()[:2] == ("cancelled", ERROR + "Cancelled")
    job.call(JOB, "Cancel")
    assert job.wait_end()[:2] == ("cancelled", ERROR + "Cancelled")
    assert machine.image_id() == image
    assert service.client.get("Loaded") is True
    with pytest.raises(GLib.Error, match="over already"):
        job.call(JOB, "Cancel")


def test_work_that_the_service_began_by_itself_is_a_job_too(
    start: Callable[..., Service], machine: FakeMachine
) -> None:
    machine.write("slow", "")
    service = start()
    wait(lambda: service.client.get("Activity") == "building", "the build")
    args = GLib.Variant("(ss)", (JOB, "Kind"))
    reply = service.client.connection.call_sync(NAME, f"{PATH}/job/1", PROPERTIES, "Get", args, None, 0, 5000, None)
    assert reply.unpack() == ("look",)
    (machine.root / "slow").unlink()
    service.wait_state("loaded")


def test_nonsense_is_refused(service: Service) -> None:
    name, text = service.client.error("StartJob", args=GLib.Variant("(s)", ("/etc/shadow; reboot",)))
    assert name == ERROR + "InvalidArguments"
    assert "is no kind of job" in text


def test_old_jobs_leave_the_bus(service: Service) -> None:
    first = Follower(service.client, "load")
    first.wait_end()
    for _ in range(20):
        service.client.call("Load")
    with pytest.raises(GLib.Error, match="does not exist"):
        first.all()


def test_the_job_exports_what_its_xml_says(service: Service) -> None:
    job = Follower(service.client, "load")
    shown = ET.fromstring(job.call("org.freedesktop.DBus.Introspectable", "Introspect")[0])
    written = ET.parse(TOP / f"units/{JOB}.xml").getroot()

    def members(root: ET.Element) -> list[tuple[Any, ...]]:
        (interface,) = [entry for entry in root.findall("interface") if entry.get("name") == JOB]
        return sorted(
            (entry.tag, entry.get("name"), entry.get("type"), tuple(part.get("type") for part in entry))
            for entry in interface
        )

    assert members(shown) == members(written)
    properties = {entry.get("name") for entry in written.iter("property")}
    assert properties == set(job.all())
    text = (TOP / f"units/{JOB}.xml").read_text()
    for name in (*properties, "Cancel", "Completed"):
        assert f"{name}:" in text


def test_ten_callers_of_slow_methods_hold_up_nobody(service: Service, machine: FakeMachine) -> None:
    """More than the pool has threads: a call that waits for a job costs none."""
    machine.write("slow", "")
    done: list[object] = []

    def ended(connection: Gio.DBusConnection, result: Gio.AsyncResult) -> None:
        done.append(connection.call_finish(result))

    for _ in range(10):
        service.client.connection.call(NAME, PATH, INTERFACE, "Rebuild", None, None, 0, 120_000, None, ended)
    other = Client(service.bus.address)
    assert other.call("ListCrashes", ms=60_000) == ([],)  # none of them is over, nor will it be
    assert done == []
    (machine.root / "slow").unlink()
    context = GLib.MainContext.default()
    wait(lambda: (context.iteration(False), len(done) == 10)[1], "ten replies", 120)
