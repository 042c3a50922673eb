# SPDX-License-Identifier: GPL-2.0-or-later
"""The daemon on a private bus: each method, property, signal and error, and who may do what."""

from __future__ import annotations

import re
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable
from typing import Any

import pytest
from bus_bench import (
    ERROR,
    INTERFACE,
    MUTATING,
    NAME,
    PATH,
    PROPERTIES,
    TOP,
    Client,
    Service,
    pump,
    wait,
)
from fake_machine import MIB, RELEASE, FakeMachine
from gi.repository import Gio, GLib

import kdumpd
from kdumpd.service import pending


def test_properties(service: Service, machine: FakeMachine) -> None:
    found = service.client.all()
    (reason,) = found.pop("Reasons")
    assert reason["code"] == "not-proven"
    assert set(reason) == {"code", "sentence", "cure"}
    required, since = found.pop("RequiredBytes"), found.pop("LoadedSinceUsec")
    assert 100 * MIB < required < 160 * MIB
    assert abs(since / 1e6 - time.time()) < 60
    assert found == {
        "Version": kdumpd.__version__,
        "State": "loaded",
        "Armed": True,
        "KernelRelease": RELEASE,
        "ReservedBytes": 256 * MIB,
        "Loaded": True,
        "ImagePath": str(machine.root / "var/lib/kdumpd" / RELEASE / "initrd"),
        "ImageId": machine.image_id(),
        "Activity": "",
        "LastError": "",
        "Crashkernel": "256M",
        "NextCrashkernels": [],
        "Triggers": {"oops": True},
        "PanicTimeout": 0,
        "Lockdown": "",
        "SecureBoot": False,
        "Hotplug": [],
        "LastCapture": {},
        "LastTest": {},
        "LastRehearsal": {},
    }


def test_the_service_exports_what_the_xml_says(service: Service) -> None:
    shown = ET.fromstring(service.client.call("Introspect", interface="org.freedesktop.DBus.Introspectable")[0])
    written = ET.parse(TOP / "units/org.kdumpd.Kdump1.xml").getroot()

    def members(root: ET.Element) -> list[tuple[Any, ...]]:
        (interface,) = [entry for entry in root.findall("interface") if entry.get("name") == INTERFACE]
        found = []
        for entry in interface:
            inside = [(part.tag, part.get("type"), part.get("direction"), part.get("value")) for part in entry]
            found.append((entry.tag, entry.get("name"), entry.get("type"), entry.get("access"), tuple(inside)))
        return sorted(found, key=str)

    assert members(shown) == members(written)
    names = {entry[1] for entry in members(written) if entry[0] == "property"}
    assert names == set(service.client.all())
    assert {entry[1] for entry in members(written) if entry[0] == "method"} == {
        *MUTATING,
        "StartJob",
        "KernelsChanged",
        "ListCrashes",
        "TestCrash",
    }


def test_each_member_has_its_comment() -> None:
    text = (TOP / "units/org.kdumpd.Kdump1.xml").read_text()
    root = ET.fromstring(text)
    for entry in root.iter():
        if entry.tag in ("property", "method"):
            assert f"{entry.get('name')}:" in text


def test_unload_and_load(service: Service, machine: FakeMachine) -> None:
    loaded = machine.root / "sys/kernel/kexec_crash_loaded"
    assert service.client.call("Unload") == ()
    assert loaded.read_text() == "0\n"
    assert (service.client.get("State"), service.client.get("Loaded")) == ("unloaded", False)
    time.sleep(0.8)  # some looks later it is still so
    assert service.client.get("Reasons")[0]["code"] == "held"
    assert service.client.call("Load") == ()
    assert loaded.read_text() == "1\n"
    assert service.client.get("State") == "loaded"


def test_reload_reads_the_configuration(service: Service, machine: FakeMachine) -> None:
    before = machine.image_id()
    machine.config("final_action halt\n")
    assert service.client.call("Reload") == ()
    assert machine.image_id() != before
    assert service.client.get("ImageId") == machine.image_id()


def test_rebuild_builds_a_fresh_image_again(service: Service, machine: FakeMachine) -> None:
    path = machine.root / "var/lib/kdumpd" / RELEASE / "initrd"
    before = path.stat().st_ino
    assert service.client.call("Rebuild") == ()
    assert path.stat().st_ino != before


def test_list_crashes(service: Service, machine: FakeMachine) -> None:
    assert service.client.call("ListCrashes") == ([],)
    machine.crash("host-20260101T000000Z", image_id="x", panic="\x00\x1b[2J panic \ud800")
    cut = machine.crash("host-20260102T000000Z")
    (cut / "manifest.json").unlink()
    first, second = service.client.call("ListCrashes")[0]
    assert first["result"] == "complete"
    assert first["kernel"] == RELEASE
    assert first["took_usec"] == 8_500_000
    assert first["dump_bytes"] == 4104
    assert "\0" not in first["panic"]
    assert second["result"] == "interrupted"
    assert "manifest" in second["problem"]
    machine.config("ext4 UUID=ffffffff-0000-4000-8000-000000000000\n")
    assert service.client.error("ListCrashes")[0] == ERROR + "Target"


def test_a_crash_by_this_image_proves_it(service: Service, machine: FakeMachine) -> None:
    machine.crash("host-20260101T000000Z", image_id=machine.image_id())
    service.wait_state("proven")
    assert "A crash was captured (complete)" in service.log.read_text()


def _watch(client: Client) -> list[dict[str, Any]]:
    seen: list[dict[str, Any]] = []

    def heard(*arguments: Any) -> None:
        interface, changed, gone = arguments[5].unpack()
        assert (interface, gone) == (INTERFACE, [])
        seen.append(changed)

    client.connection.signal_subscribe(
        None, PROPERTIES, "PropertiesChanged", PATH, None, Gio.DBusSignalFlags.NONE, heard
    )
    return seen


def test_changes_are_told_at_once_and_together(service: Service, machine: FakeMachine) -> None:
    seen = _watch(service.client)
    service.client.call("Unload")
    pump(lambda: any(change.get("State") == "unloaded" for change in seen), "the signal")
    (change,) = [change for change in seen if "State" in change]
    assert change["Armed"] is False
    assert change["Loaded"] is False
    assert change["LoadedSinceUsec"] == 0
    assert change["Reasons"][0]["code"] == "held"
    assert "Version" not in change
    assert "ReservedBytes" not in change
    del seen[:]
    machine.reserve("64M")
    told: dict[str, Any] = {}

    def arrived() -> bool:
        for change in seen:
            told.update(change)
        return (told.get("ReservedBytes"), told.get("State")) == (64 * MIB, "reserved-too-small")

    pump(arrived, "the second signal")


def test_a_quiet_service_sends_nothing(service: Service) -> None:
    seen = _watch(service.client)

    def listen(seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            GLib.MainContext.default().iteration(False)
            time.sleep(0.01)

    listen(0.5)  # the signal of what the properties say already may be on its way
    del seen[:]
    listen(1.2)  # four looks
    assert seen == []


def test_somebody_else_unloads_and_it_is_mended(service: Service, machine: FakeMachine) -> None:
    machine.crash_loaded(False)
    wait(lambda: (machine.root / "sys/kernel/kexec_crash_loaded").read_text() == "1\n", "a load")
    service.wait_state("loaded")


def _spoil_reserve(machine: FakeMachine) -> None:
    machine.reserve(None)


def _spoil_config(machine: FakeMachine) -> None:
    machine.config("path nowhere\n")


def _spoil_kernel(machine: FakeMachine) -> None:
    (machine.root / f"boot/vmlinuz-{RELEASE}").unlink()


def _spoil_support(machine: FakeMachine) -> None:
    machine.crash_loaded(None)


def _spoil_build(machine: FakeMachine) -> None:
    machine.write("fail", "No room on the disk")


def _spoil_sysctl(machine: FakeMachine) -> None:
    machine.write("proc/sys/kernel/kexec_load_disabled", "1\n")


def _spoil_file(machine: FakeMachine) -> None:
    machine.write(f"boot/vmlinuz-{RELEASE}", b"not a kernel")


def _spoil_target(machine: FakeMachine) -> None:
    machine.config("xfs LABEL=gone\n")


def _spoil_lock(machine: FakeMachine) -> None:
    """The target's filesystem lies on a LUKS volume."""
    folder = machine.root / "sys/devices/virtual/block/dm-0"
    machine.write("sys/devices/virtual/block/dm-0/dev", "253:0\n")
    machine.write("sys/devices/virtual/block/dm-0/dm/uuid", "CRYPT-LUKS2-0\n")
    machine.write("dev/dm-0", "")
    for place in ("sys/class/block/dm-0", "sys/dev/block/253:0"):
        (machine.root / place).symlink_to(folder)
    (machine.root / "dev/disk/by-uuid/1111-aaaa").symlink_to("../../dm-0")
    machine.config("ext4 UUID=1111-aaaa\n")


@pytest.mark.parametrize(
    ("spoil", "name", "words"),
    [
        (_spoil_reserve, "NotReserved", "without crashkernel="),
        (_spoil_config, "Config", "/etc/kdump.conf:1"),
        (_spoil_kernel, "NotFound", "no image at"),
        (_spoil_support, "Unsupported", "cannot load"),
        (_spoil_build, "Build", "No room on the disk"),
        (_spoil_sysctl, "Load", "kexec_load_disabled"),
        (_spoil_file, "Load", "not a Linux kernel"),
        (_spoil_target, "Target", "LABEL=gone"),
        (_spoil_lock, "TargetLocked", "an encrypted volume"),
    ],
)
def test_errors_have_their_names(
    start: Callable[..., Service],
    machine: FakeMachine,
    spoil: Callable[[FakeMachine], None],
    name: str,
    words: str,
) -> None:
    spoil(machine)
    service = start()
    error, text = service.client.error("Load")
    assert error == ERROR + name
    assert words in text
    sentence = text.partition("\n")[0]
    assert sentence[0].isupper() or sentence.startswith("/")
    assert service.client.get("Armed") is False
    assert "Traceback" not in service.log.read_text()


def test_each_error_that_is_documented_is_caused_by_a_test() -> None:
    table = (TOP / "docs/D-BUS.md").read_text().partition("## Errors")[2].partition("\n## ")[0]
    names = re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)
    assert len(names) > 10
    tests = "".join(path.read_text() for path in (TOP / "tests/service").glob("test_*.py"))
    assert [name for name in names if f'"{name}"' not in tests] == []


def test_a_busy_service_answers(start: Callable[..., Service], machine: FakeMachine) -> None:
    machine.write("slow", "")
    service = start()
    wait(lambda: service.client.get("Activity") == "building", "a build")
    begin = time.monotonic()
    for _ in range(20):
        service.client.call("Ping", interface="org.freedesktop.DBus.Peer")
        assert service.client.get("State") == "image-missing"
    assert time.monotonic() - begin < 5.0  # how soon it answers is measured in test_children
    (machine.root / "slow").unlink()
    service.wait_state("loaded")


def test_a_slow_load_blocks_nobody(service: Service, machine: FakeMachine) -> None:
    machine.write("slow", "")
    client = Client(service.bus.address)
    outcome: list[bool] = []

    def done(connection: Gio.DBusConnection, result: Gio.AsyncResult) -> None:
        connection.call_finish(result)
        outcome.append(True)

    client.connection.call(NAME, PATH, INTERFACE, "Rebuild", None, None, Gio.DBusCallFlags.NONE, 20_000, None, done)
    wait(lambda: service.client.get("Activity") == "building", "the build")
    worst = 0.0
    for _ in range(50):
        begin = time.monotonic()
        service.client.call("Ping", interface="org.freedesktop.DBus.Peer")
        service.client.get("State")
        worst = max(worst, time.monotonic() - begin)
    assert worst < 5.0
    assert not outcome
    (machine.root / "slow").unlink()
    pump(lambda: outcome, "the reply")


def test_the_real_builder_feeds_the_service(start: Callable[..., Service], machine: FakeMachine) -> None:
    service = start(real_builder=True)
    service.wait_state("loaded", 120)
    assert (machine.root / "var/lib/kdumpd" / RELEASE / "initrd").stat().st_mode & 0o777 == 0o600
    assert service.client.get("ImageId") == machine.image_id()
    assert "Built the capture image" in service.log.read_text()


def test_a_kernel_that_came_gets_its_image_ahead(service: Service, machine: FakeMachine) -> None:
    release = "6.12.9-fake-amd64"
    machine.write(f"boot/vmlinuz-{release}", (machine.root / f"boot/vmlinuz-{RELEASE}").read_bytes())
    machine.write(f"boot/config-{release}", (machine.root / f"boot/config-{RELEASE}").read_bytes())
    for path in sorted((machine.root / f"usr/lib/modules/{RELEASE}").iterdir()):
        machine.write(f"usr/lib/modules/{release}/{path.name}", path.read_bytes())
    before = machine.image_id()
    pending.leave(machine.root / "var/lib/kdumpd", release, pending.Event.ADD)
    service.client.call("KernelsChanged")
    wait((machine.root / f"var/lib/kdumpd/{release}/image.json").exists, "an image for the new kernel")
    assert (service.client.get("State"), machine.image_id()) == ("loaded", before)


def _heard(client: Client) -> tuple[list[tuple[str, str]], Callable[[], bool]]:
    """What CrashAdded says from now on, and a function that lets it arrive."""
    heard: list[tuple[str, str]] = []
    client.connection.signal_subscribe(
        None, INTERFACE, "CrashAdded", PATH, None, 0, lambda *words: heard.append(words[5].unpack())
    )

    def arrived() -> bool:
        GLib.MainContext.default().iteration(False)
        return bool(heard)

    return heard, arrived


def test_a_crash_that_arrives_is_signalled(service: Service, machine: FakeMachine) -> None:
    heard, arrived = _heard(service.client)
    machine.crash("host-20260101T000000Z")
    wait(arrived, "CrashAdded")
    assert heard == [("host-20260101T000000Z", "complete")]


def test_a_crash_that_is_found_at_the_start_is_signalled(service: Service, machine: FakeMachine) -> None:
    service.stop()
    machine.crash("host-20260101T000000Z")
    listener = Client(service.bus.address)
    heard, arrived = _heard(listener)
    service.start()
    wait(arrived, "CrashAdded")
    assert heard == [("host-20260101T000000Z", "complete")]
