# SPDX-License-Identifier: GPL-2.0-or-later
"""The daemon on a private bus: each method, property, signal and error, and who may do what."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bus_bench import INTERFACE, NAME, OPEN, PATH, PROPERTIES, TOP, Bus, Client, Service, wait
from fake_machine import MIB, RELEASE, FakeMachine
from gi.repository import Gio, GLib

import kdumpd
from kdumpd.service import pending

ERROR = "org.kdumpd.Kdump1.Error."
MUTATING = ("Load", "Unload", "Reload", "Rebuild")

_AS_NOBODY = """
import os, sys
os.setgroups([]); os.setgid(65534); os.setuid(65534)
from gi.repository import Gio, GLib
flags = Gio.DBusConnectionFlags.AUTHENTICATION_CLIENT | Gio.DBusConnectionFlags.MESSAGE_BUS_CONNECTION
bus = Gio.DBusConnection.new_for_address_sync(sys.argv[1], flags, None, None)
for word in sys.argv[2:]:
    interface, method = word.rsplit(".", 1)
    arguments = GLib.Variant("(s)", ("org.kdumpd.Kdump1.Manager",)) if method == "GetAll" else None
    try:
        bus.call_sync("org.kdumpd.Kdump1", "/org/kdumpd/Kdump1", interface, method, arguments, None, 0, 5000, None)
        print("ok")
    except GLib.Error as error:
        print(Gio.DBusError.get_remote_error(error))
"""


def as_nobody(address: str, *methods: str) -> list[str]:
    """What uid 65534 gets for each call."""
    words = [sys.executable, "-c", _AS_NOBODY, address, *methods]
    return subprocess.run(words, capture_output=True, text=True, check=True, timeout=60).stdout.split()


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


def _pump(condition: Callable[[], object], what: str) -> None:
    context = GLib.MainContext.default()
    wait(lambda: (context.iteration(False), condition())[1], what)


def test_changes_are_told_at_once_and_together(service: Service, machine: FakeMachine) -> None:
    seen = _watch(service.client)
    service.client.call("Unload")
    _pump(lambda: any(change.get("State") == "unloaded" for change in seen), "the signal")
    (change,) = [change for change in seen if "State" in change]
    assert change["Armed"] is False
    assert change["Loaded"] is False
    assert change["LoadedSinceUsec"] == 0
    assert change["Reasons"][0]["code"] == "held"
    assert "Version" not in change
    assert "ReservedBytes" not in change
    del seen[:]
    machine.reserve("64M")
    _pump(lambda: any(change.get("ReservedBytes") == 64 * MIB for change in seen), "the second signal")
    assert seen[-1]["State"] == "reserved-too-small"


def test_a_quiet_service_sends_nothing(service: Service) -> None:
    seen = _watch(service.client)
    deadline = time.monotonic() + 1.2  # four looks
    while time.monotonic() < deadline:
        GLib.MainContext.default().iteration(False)
        time.sleep(0.01)
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


def test_a_busy_service_answers(start: Callable[..., Service], machine: FakeMachine) -> None:
    machine.write("slow", "")
    service = start()
    wait(lambda: service.client.get("Activity") == "building", "a build")
    begin = time.monotonic()
    for _ in range(20):
        service.client.call("Ping", interface="org.freedesktop.DBus.Peer")
        assert service.client.get("State") == "image-missing"
    assert time.monotonic() - begin < 1.0
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
    assert worst < 0.5
    assert not outcome
    (machine.root / "slow").unlink()
    _pump(lambda: outcome, "the reply")


def test_others_are_refused_by_the_service_itself(service: Service, machine: FakeMachine) -> None:
    methods = [f"{INTERFACE}.{method}" for method in (*MUTATING, "KernelsChanged", "ListCrashes")]
    before = machine.image_id()
    assert as_nobody(service.bus.address, *methods) == [ERROR + "Denied"] * len(methods)
    assert as_nobody(service.bus.address, f"{PROPERTIES}.GetAll") == ["ok"]
    assert service.client.get("State") == "loaded"
    assert machine.image_id() == before


def test_others_are_refused_on_a_system_bus_with_the_shipped_policy(
    start: Callable[..., Service], system_bus: Bus
) -> None:
    service = start(system_bus)
    service.wait_state("loaded")
    methods = [f"{INTERFACE}.{method}" for method in (*MUTATING, "KernelsChanged", "ListCrashes")]
    assert as_nobody(system_bus.address, *methods) == [ERROR + "Denied"] * len(methods)
    allowed = [
        f"{PROPERTIES}.GetAll",
        "org.freedesktop.DBus.Peer.Ping",
        "org.freedesktop.DBus.Introspectable.Introspect",
    ]
    assert as_nobody(system_bus.address, *allowed) == ["ok"] * 3
    assert service.client.call("Reload") == ()


def test_nonsense_is_refused_and_harms_nothing(service: Service) -> None:
    client = service.client
    assert client.error("Load", args=GLib.Variant("(s)", ("x",)))[0].endswith("InvalidArgs")
    assert client.error("Frobnicate")[0].endswith("UnknownMethod")
    arguments = GLib.Variant("(ssv)", (INTERFACE, "State", GLib.Variant("s", "proven")))
    assert client.error("Set", interface=PROPERTIES, args=arguments)[0].startswith("org.freedesktop.DBus.Error.")
    assert client.error("Get", interface=PROPERTIES, args=GLib.Variant("(ss)", (INTERFACE, "_actions")))[0]
    assert client.get("State") == "loaded"
    assert "Traceback" not in service.log.read_text()


def test_the_name_cannot_be_taken_over(service: Service) -> None:
    thief = Client(service.bus.address)
    allow_replacement, replace, do_not_queue = 1, 2, 4
    answer = thief.connection.call_sync(
        "org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus", "RequestName",
        GLib.Variant("(su)", (NAME, allow_replacement | replace | do_not_queue)), None, Gio.DBusCallFlags.NONE, 5000,
        None,
    )  # fmt: skip
    assert answer.unpack() == (3,)  # DBUS_REQUEST_NAME_REPLY_EXISTS
    assert service.client.get("State") == "loaded"


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
        assert process.wait(15) == 0


def _kdumpctl(bus: Bus, *words: str) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, "DBUS_SYSTEM_BUS_ADDRESS": bus.address, "LC_ALL": "C.UTF-8", "TZ": "UTC"}
    return subprocess.run(
        [sys.executable, "-m", "kdumpd.cli", *words],
        capture_output=True, text=True, check=False, env=environ, cwd=TOP, timeout=60,
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
    wait((machine.root / f"var/lib/kdumpd/{release}/image.json").exists, "an image for the new kernel", 20)
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
    wait(arrived, "CrashAdded", 20)
    assert heard == [("host-20260101T000000Z", "complete")]


def test_a_crash_that_is_found_at_the_start_is_signalled(service: Service, machine: FakeMachine) -> None:
    service.stop()
    machine.crash("host-20260101T000000Z")
    listener = Client(service.bus.address)
    heard, arrived = _heard(listener)
    service.start()
    wait(arrived, "CrashAdded", 20)
    assert heard == [("host-20260101T000000Z", "complete")]
