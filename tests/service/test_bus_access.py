# SPDX-License-Identifier: GPL-2.0-or-later
"""Who may do what on the bus, and what those hear who may not."""

from __future__ import annotations

from collections.abc import Callable

from bus_bench import (
    ERROR,
    INTERFACE,
    MUTATING,
    NAME,
    PROPERTIES,
    Bus,
    Client,
    Service,
    as_nobody,
)
from fake_machine import FakeMachine
from gi.repository import Gio, GLib


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
