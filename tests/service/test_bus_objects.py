# SPDX-License-Identifier: GPL-2.0-or-later
"""Crashes and jobs as objects, the ObjectManager, polkit, and the bound for callers."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from bus_bench import NAME, PATH, PROPERTIES, TOP, Bus, Client, Service, wait
from fake_machine import FakeMachine
from gi.repository import Gio, GLib

from kdumpd.dumpfile.manifest import Result
from kdumpd.service.dbus.calls import Crowd
from kdumpd.service.dbus.crash import crash_path
from kdumpd.service.dbus.polkit import Privilege

ERROR = "org.kdumpd.Kdump1.Error."
MANAGER = "org.freedesktop.DBus.ObjectManager"
CRASH = "org.kdumpd.Kdump1.Crash"
JOB = "org.kdumpd.Kdump1.Job"


def _call(client: Client, path: str, interface: str, method: str, args: GLib.Variant | None = None) -> Any:
    reply = client.connection.call_sync(NAME, path, interface, method, args, None, Gio.DBusCallFlags.NONE, 10_000, None)
    return reply.unpack()


def _objects(client: Client) -> dict[str, Any]:
    found: dict[str, Any] = client.call("GetManagedObjects", interface=MANAGER)[0]
    return found


def _listen(client: Client) -> list[tuple[str, Any]]:
    seen: list[tuple[str, Any]] = []
    client.connection.signal_subscribe(
        None,
        MANAGER,
        None,
        PATH,
        None,
        Gio.DBusSignalFlags.NONE,
        lambda *args: seen.append((args[4], args[5].unpack())),
    )
    return seen


def _pump(condition: Callable[[], object], what: str) -> None:
    context = GLib.MainContext.default()
    wait(lambda: (context.iteration(False), condition())[1], what)


def test_a_crash_is_an_object_while_it_is_there(service: Service, machine: FakeMachine) -> None:
    seen = _listen(service.client)
    name = "host-20260101T000000Z"
    folder = machine.crash(name, panic="secret of the crashed memory")
    path = crash_path(name)
    _pump(lambda: [one for one in seen if one[1][0] == path], "the signal")
    (added,) = [one for one in seen if one[1][0] == path]
    assert added[0] == "InterfacesAdded"
    shown = {"Result": "complete", "TimeUsec": 1_700_000_000_000_000, "TookUsec": 8_500_000, "DumpBytes": 4104}
    assert added[1][1] == {CRASH: shown}
    assert _objects(service.client)[path] == {CRASH: shown}
    assert _call(service.client, path, PROPERTIES, "GetAll", GLib.Variant("(s)", (CRASH,))) == (shown,)
    assert _call(service.client, path, CRASH, "Describe")[0]["panic"] == "secret of the crashed memory"
    last = {"result": "complete", "time_usec": 1_700_000_000_000_000, "dump_bytes": 4104}
    wait(lambda: service.client.get("LastCapture") == last, "the property, which comes after the object")
    for child in folder.iterdir():
        child.unlink()
    folder.rmdir()
    _pump(lambda: ("InterfacesRemoved", (path, [CRASH])) in seen, "the other signal")
    assert path not in _objects(service.client)


def test_a_job_is_listed_too(service: Service) -> None:
    (job,) = service.client.call("StartJob", args=GLib.Variant("(s)", ("reload",)))
    assert _objects(service.client)[job][JOB]["Kind"] == "reload"


@pytest.mark.parametrize(
    ("name", "end"), [("host-1", "host_2d1"), ("a_b", "a_5fb"), ("\udcff", "_ff"), ("ä", "_c3_a4"), ("..", "_2e_2e")]
)
def test_any_name_is_a_path(name: str, end: str) -> None:
    assert crash_path(name) == f"{PATH}/crash/{end}"
    assert GLib.Variant.is_object_path(crash_path(name))


def test_many_crashes_have_an_object_for_the_newest(start: Callable[..., Service], machine: FakeMachine) -> None:
    for number in range(260):
        machine.crash(f"c{number}", crash_time_usec=1_700_000_000_000_000 + number, result=Result.FAILED)
    service = start()
    wait(lambda: len(_objects(service.client)) >= 256, "the objects")
    crashes = {path for path in _objects(service.client) if "/crash/" in path}
    assert len(crashes) == 256
    assert crash_path("c259") in crashes
    assert crash_path("c0") not in crashes


def test_the_facts_are_properties(service: Service, machine: FakeMachine) -> None:
    machine.write("proc/sys/kernel/hung_task_panic", "0\n")
    machine.write("proc/sys/kernel/panic", "30\n")
    machine.write("sys/kernel/security/lockdown", "none [integrity] confidentiality\n")
    machine.write("sys/devices/system/memory/crash_hotplug", "1\n")
    machine.write("boot/grub/grub.cfg", "linux /vmlinuz crashkernel=1G\nlinux /vmlinuz\n")
    service.client.call("Reload")
    found = service.client.all()
    assert found["Crashkernel"] == "256M"
    assert found["NextCrashkernels"] == ["1G", ""]
    assert found["Triggers"] == {"oops": True, "hung-task": False}
    assert (found["PanicTimeout"], found["Lockdown"], found["SecureBoot"]) == (30, "integrity", False)
    assert found["Hotplug"] == ["memory"]
    assert found["LastCapture"] == {}


_POLKIT = """
import os, sys
from gi.repository import Gio, GLib
XML = '''<node><interface name="org.freedesktop.PolicyKit1.Authority"><method name="CheckAuthorization">
<arg type="(sa{sv})" direction="in"/><arg type="s" direction="in"/><arg type="a{ss}" direction="in"/>
<arg type="u" direction="in"/><arg type="s" direction="in"/><arg type="(bba{ss})" direction="out"/>
</method></interface></node>'''
allowed, later = sys.argv[2].split(","), sys.argv[3] == "later"
waiting = []
flags = Gio.DBusConnectionFlags.AUTHENTICATION_CLIENT | Gio.DBusConnectionFlags.MESSAGE_BUS_CONNECTION
bus = Gio.DBusConnection.new_for_address_sync(sys.argv[1], flags, None, None)
def call(connection, sender, path, interface, method, arguments, invocation):
    (kind, details), action, _, given, _ = arguments.unpack()
    print(kind, details["name"][:1], action, given, flush=True)
    waiting.append((invocation, action))
    if not later:
        answer()
def answer():
    while waiting:
        invocation, action = waiting.pop()
        invocation.return_value(GLib.Variant("((bba{ss}))", ((action in allowed, False, {}),)))
def told(*_):
    global later
    os.read(0, 1)
    later = False
    answer()
    return False
(interface,) = Gio.DBusNodeInfo.new_for_xml(XML).interfaces
bus.register_object("/org/freedesktop/PolicyKit1/Authority", interface, call, None, None)
GLib.io_add_watch(0, GLib.IO_IN, told)
Gio.bus_own_name_on_connection(bus, "org.freedesktop.PolicyKit1", 0, lambda *_: print("up", flush=True), None)
GLib.MainLoop().run()
"""

_AS_NOBODY = """
import os, sys
os.setgroups([]); os.setgid(65534); os.setuid(65534)
from gi.repository import Gio, GLib
flags = Gio.DBusConnectionFlags.AUTHENTICATION_CLIENT | Gio.DBusConnectionFlags.MESSAGE_BUS_CONNECTION
bus = Gio.DBusConnection.new_for_address_sync(sys.argv[1], flags, None, None)
def ask(method):
    arguments = GLib.Variant("(s)", ("load",)) if method == "StartJob" else None
    try:
        bus.call_sync("org.kdumpd.Kdump1", "/org/kdumpd/Kdump1", "org.kdumpd.Kdump1.Manager", method, arguments, None,
                      Gio.DBusCallFlags.ALLOW_INTERACTIVE_AUTHORIZATION, 20000, None)
        return "ok"
    except GLib.Error as error:
        return Gio.DBusError.get_remote_error(error)
"""


class _Polkit:
    """A polkitd that allows what it was told to, at once or after `answer`; what it was asked."""

    def __init__(self, bus: Bus, allowed: list[str], later: bool) -> None:
        words = [sys.executable, "-c", _POLKIT, bus.address, ",".join(allowed), "later" if later else "at once"]
        self._process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.asked: list[str] = []
        threading.Thread(target=self._read, daemon=True).start()
        wait(lambda: "up" in self.asked, "the polkit of the test")

    def _read(self) -> None:
        assert self._process.stdout is not None
        self.asked.extend(line.strip() for line in self._process.stdout)

    def answer(self) -> None:
        """The person has made up his mind."""
        assert self._process.stdin is not None
        self._process.stdin.write("x")
        self._process.stdin.flush()

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(60)
        assert self._process.stdin is not None
        self._process.stdin.close()


@pytest.fixture
def polkit(bus: Bus) -> Iterator[Callable[..., _Polkit]]:
    started: list[_Polkit] = []

    def begin(*allowed: str, later: bool = False) -> _Polkit:
        started.append(_Polkit(bus, list(allowed), later))
        return started[-1]

    yield begin
    for one in started:
        one.stop()


def _nobody(bus: Bus, *methods: str) -> list[str]:
    words = [sys.executable, "-c", _AS_NOBODY + "print(*(ask(word) for word in sys.argv[2:]))", bus.address, *methods]
    return subprocess.run(words, capture_output=True, text=True, check=True, timeout=180).stdout.split()


def test_polkit_decides_by_privilege(service: Service, polkit: Callable[..., _Polkit]) -> None:
    authority = polkit("org.kdumpd.Kdump1.manage")
    assert _nobody(service.bus, "Reload", "StartJob", "ListCrashes") == ["ok", "ok", ERROR + "Denied"]
    assert authority.asked[1:] == [
        "system-bus-name : org.kdumpd.Kdump1.manage 1",  # 1: the caller said that a person may be asked
        "system-bus-name : org.kdumpd.Kdump1.manage 1",
        "system-bus-name : org.kdumpd.Kdump1.read-dumps 1",
    ]
    service.client.call("Reload")
    assert len(authority.asked) == 4  # root is not asked about


def test_a_person_who_takes_long_to_answer_keeps_nobody_out(service: Service, polkit: Callable[..., _Polkit]) -> None:
    authority = polkit("org.kdumpd.Kdump1.manage", later=True)
    script = "import threading\nfor _ in range(8): threading.Thread(target=ask, args=['Reload']).start()\n"
    process = subprocess.Popen([sys.executable, "-c", _AS_NOBODY + script, service.bus.address])
    wait(lambda: len(authority.asked) == 1 + 8, "the questions")
    assert service.client.call("Reload") == ()  # nobody has answered any of them yet
    assert process.poll() is None
    authority.answer()
    assert process.wait(60) == 0


def test_who_floods_is_bounded_and_keeps_nobody_out(service: Service, machine: FakeMachine) -> None:
    before = machine.image_id()
    script = """
import collections, time
loop, seen, sent = GLib.MainLoop(), collections.Counter(), 3000
def done(source, result):
    try:
        source.call_finish(result)
        seen["ok"] += 1
    except GLib.Error as error:
        seen[Gio.DBusError.get_remote_error(error)] += 1
    if seen.total() == sent:
        loop.quit()
where = ("org.kdumpd.Kdump1", "/org/kdumpd/Kdump1", "org.kdumpd.Kdump1.Manager", "Load")
for _ in range(sent):
    bus.call(*where, None, None, 0, 60000, None, done)
loop.run()
print(*(f"{name}={count}" for name, count in seen.items()))
"""
    words = [sys.executable, "-c", _AS_NOBODY + script, service.bus.address]
    flood = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    waits = []
    while flood.poll() is None:
        begin = time.monotonic()
        assert service.client.get("State") == "loaded"
        waits.append(time.monotonic() - begin)
        time.sleep(0.02)
    assert flood.stdout is not None
    seen = dict(word.split("=") for word in flood.stdout.read().split())
    # The bus daemon itself has a bound as well.
    assert set(seen) <= {ERROR + "Denied", ERROR + "Limit", "org.freedesktop.DBus.Error.LimitsExceeded"}
    assert int(seen[ERROR + "Limit"]) > 0
    assert sorted(waits)[len(waits) // 2] < 0.5
    assert service.client.call("Reload") == ()
    assert machine.image_id() == before


def test_the_crowd_counts_each_caller_and_all() -> None:
    crowd = Crowd()
    assert [crowd.enter("a") for _ in range(17)] == [True] * 16 + [False]
    crowd.leave("a")
    assert crowd.enter("a")
    others = [crowd.enter(f"b{number}") for number in range(250)]
    assert others.count(True) == 240
    assert not crowd.enter("c")


def test_the_policy_file_names_the_privileges() -> None:
    text = (TOP / "units/org.kdumpd.Kdump1.policy").read_text()
    for privilege in Privilege:
        assert f'<action id="{privilege.action}">' in text
    assert "<allow_any>yes" not in text
    assert "<allow_inactive>yes" not in text
    assert "<allow_active>yes" not in text


def test_objects_that_are_gone_are_not_kept(service: Service, machine: FakeMachine) -> None:
    """pydbus keeps each object that was ever registered; ours would be kept with its crash."""
    import gc
    import weakref

    from kdumpd.crashes.index import read_crashes
    from kdumpd.service.dbus.adapter import Link
    from kdumpd.service.dbus.crash import CrashObject
    from kdumpd.service.dbus.manager import Manager

    machine.crash("one")
    (crash,) = read_crashes(machine.root / "var/crash")
    status = _any_status(machine)
    manager = Manager(None, None, status)  # type: ignore[arg-type]  # nothing is asked of them
    service.stop()
    link = Link(manager, manager.tree, address=service.bus.address, on_closed=lambda: None)
    thing = CrashObject(crash)
    kept = weakref.ref(thing)
    link.publish(crash_path("one"), thing)
    link.withdraw(crash_path("one"))
    link.close()
    del thing
    _pump(lambda: gc.collect() + 1 and kept() is None, "the end of the object")  # GDBus frees in the main loop
    service.start()


def _any_status(machine: FakeMachine) -> Any:
    from kdumpd.service.look import look

    return look(machine.root)


def test_a_crash_exports_what_its_xml_says(service: Service, machine: FakeMachine) -> None:
    machine.crash("one")
    path = crash_path("one")
    wait(lambda: path in _objects(service.client), "the crash")
    shown = ET.fromstring(_call(service.client, path, "org.freedesktop.DBus.Introspectable", "Introspect")[0])
    text = (TOP / "units/org.kdumpd.Kdump1.Crash.xml").read_text()

    def members(root: ET.Element) -> list[tuple[Any, ...]]:
        (interface,) = [entry for entry in root.findall("interface") if entry.get("name") == CRASH]
        return sorted((entry.tag, entry.get("name"), entry.get("type"), entry.get("access")) for entry in interface)

    assert members(shown) == members(ET.fromstring(text))
    assert all(f"{name}:" in text for _, name, _, _ in members(shown))
    assert {name for kind, name, _, _ in members(shown) if kind == "property"} == set(
        _objects(service.client)[path][CRASH]
    )


def test_kdumpctl_shows_the_same_with_and_without_the_service(service: Service, machine: FakeMachine) -> None:
    from kdumpd.cli.status import from_service

    machine.crash("one")
    wait(lambda: service.client.get("LastCapture"), "the crash")
    asked, looked = from_service(service.client.all()).fields, _any_status(machine).to_dict()
    assert asked == {**looked, "next_crashkernels": [], "hotplug": []}
