# SPDX-License-Identifier: GPL-2.0-or-later
"""Talks to the service over D-Bus, as a client with bounded waits. Errors come back as our own classes."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from kdumpd import errors
from kdumpd.errors import DeniedError, KdumpError, ServiceUnreachableError

try:
    from gi.repository import Gio, GLib
except ImportError as missing:
    # `pip install kdumpd` leaves the service's libraries out; the machine can still be looked at without them.
    raise ServiceUnreachableError(
        f"The service kdumpd cannot be asked: {missing.name} is not installed", hint="apt install python3-gi"
    ) from missing

NAME = "org.kdumpd.Kdump1"
PATH = "/org/kdumpd/Kdump1"
INTERFACE = "org.kdumpd.Kdump1.Manager"
_STATUS_MS = 5_000
_ACTION_MS = 1_000_000  # a build may take minutes; the service bounds it
_GONE = ("ServiceUnknown", "NameHasNoOwner", "NoReply", "Disconnected", "Spawn.", "NoServer", "FileNotFound")
_START = "start it: systemctl start kdumpd"


def properties() -> dict[str, Any]:
    """All properties of the service, which is not started for it. Raises ServiceUnreachableError."""
    arguments = GLib.Variant("(s)", (INTERFACE,))
    answer = _call("org.freedesktop.DBus.Properties", "GetAll", arguments, _STATUS_MS, start=False)
    found: dict[str, Any] = answer.unpack()[0]
    return found


def call(method: str) -> None:
    """Calls a method without arguments and waits for its end. Raises the KdumpError that the service raised."""
    _call(INTERFACE, method, None, _ACTION_MS, start=True)


def nudge(method: str) -> None:
    """Calls a method without arguments of a service that runs. Raises ServiceUnreachableError when none does."""
    _call(INTERFACE, method, None, _STATUS_MS, start=False)


def follow(
    on_state: Callable[[Mapping[str, Any]], None],
    on_event: Callable[[str, list[str]], None],
    on_gone: Callable[[], None],
) -> None:
    """Reports changes until SIGINT or SIGTERM: all properties after each change, other signals by their name.

    Raises ServiceUnreachableError when there is no bus.
    """
    try:
        connection = Gio.bus_get_sync(Gio.BusType.SYSTEM, None)
    except GLib.Error as error:
        raise _translate(error) from error
    loop = GLib.MainLoop()
    seen: dict[str, Any] = {}

    def changed(_bus: Any, _sender: str, _path: str, _interface: str, _name: str, arguments: GLib.Variant) -> None:
        interface, values, _ = arguments.unpack()
        if interface == INTERFACE and seen:
            seen.update(values)
            on_state(seen)

    def signalled(_bus: Any, _sender: str, _path: str, _interface: str, name: str, arguments: GLib.Variant) -> None:
        on_event(name, [str(word) for word in arguments.unpack()])

    def appeared(_bus: Any, _name: str, _owner: str) -> None:
        try:
            seen.update(properties())
        except ServiceUnreachableError:
            return  # gone again; `vanished` tells
        on_state(seen)

    def vanished(_bus: Any, _name: str) -> None:
        seen.clear()
        on_gone()

    def subscribe(interface: str, path: str | None, receive: Callable[..., None]) -> None:
        connection.signal_subscribe(NAME, interface, None, path, None, Gio.DBusSignalFlags.NONE, receive)

    subscribe("org.freedesktop.DBus.Properties", PATH, changed)
    subscribe(INTERFACE, None, signalled)
    Gio.bus_watch_name_on_connection(connection, NAME, Gio.BusNameWatcherFlags.NONE, appeared, vanished)
    for number in (signal.SIGINT, signal.SIGTERM):
        GLib.unix_signal_add(GLib.PRIORITY_HIGH, number, loop.quit)
    loop.run()


def _call(interface: str, method: str, arguments: GLib.Variant | None, wait_ms: int, *, start: bool) -> GLib.Variant:
    flags = Gio.DBusCallFlags.NONE if start else Gio.DBusCallFlags.NO_AUTO_START
    try:
        bus = Gio.bus_get_sync(Gio.BusType.SYSTEM, None)
        return bus.call_sync(NAME, PATH, interface, method, arguments, None, flags, wait_ms, None)
    except GLib.Error as error:
        raise _translate(error) from error


def _translate(error: GLib.Error) -> KdumpError:
    name = Gio.DBusError.get_remote_error(error) or ""
    text: str = error.message.removeprefix(f"GDBus.Error:{name}: ")
    for kind in _tree(KdumpError):
        if name == kind.dbus_name:
            sentence, _, hint = text.partition("\n")
            return kind(sentence, hint=hint or None)
    if name.endswith("AccessDenied"):
        return DeniedError("Only root may do this", hint="use sudo")
    if not name or any(part in name for part in _GONE):
        return ServiceUnreachableError(f"The service kdumpd does not answer: {text}", hint=_START)
    return ServiceUnreachableError(f"The service kdumpd failed: {text}", hint="journalctl -u kdumpd")


def _tree(kind: type[errors.KdumpError]) -> Iterator[type[errors.KdumpError]]:
    yield kind
    for child in kind.__subclasses__():
        yield from _tree(child)
