# SPDX-License-Identifier: GPL-2.0-or-later
"""Talks to the service over D-Bus, as a client with bounded waits. Errors come back as our own classes."""

from __future__ import annotations

import signal
import time
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
_JOB = "org.kdumpd.Kdump1.Job"
_PROPERTIES = "org.freedesktop.DBus.Properties"
_STATUS_MS = 5_000
_WORK_MS = 25_000  # of a machine that is busy: it boots, or a capture kernel is being loaded
_START_SECONDS = 100.0  # what systemd allows a service to take, DefaultTimeoutStartSec, and something more
_PERSON_MS = 180_000  # somebody types a password
_BUS, _BUS_PATH = "org.freedesktop.DBus", "/org/freedesktop/DBus"
_SLOW = "org.freedesktop.DBus.Error.TimedOut"
_GONE = ("ServiceUnknown", "NameHasNoOwner", "NoReply", "Disconnected", "Spawn.", "NoServer", "FileNotFound")
_START = "start it: systemctl start kdumpd"


def properties() -> dict[str, Any]:
    """All properties of the service, which is not started for it. Raises ServiceUnreachableError."""
    arguments = GLib.Variant("(s)", (INTERFACE,))
    answer = _call(_PROPERTIES, "GetAll", arguments, _STATUS_MS)
    found: dict[str, Any] = answer.unpack()[0]
    return found


def run_job(kind: str, on_phase: Callable[[str, float], None]) -> None:
    """Starts a job of the service and waits for its end; reports phase and progress (0 to 1) meanwhile.

    SIGINT cancels the job. Raises the KdumpError that ended it.
    """
    _wake(lambda: on_phase("waiting for kdumpd to start", 0.0))
    connection = _connect()
    loop = GLib.MainLoop()
    seen: dict[str, Any] = {}

    def take(values: Mapping[str, Any]) -> None:
        seen.update(values)
        on_phase(seen["Phase"], seen["Progress"])
        if seen["State"] not in ("queued", "running"):
            loop.quit()

    def changed(_bus: Any, _sender: str, _path: str, _interface: str, _name: str, arguments: GLib.Variant) -> None:
        interface, values, _ = arguments.unpack()
        if interface == _JOB and seen:
            take(values)

    def vanished(_bus: Any, _name: str) -> None:
        seen.update(State="failed", ErrorName=ServiceUnreachableError.dbus_name)
        seen["ErrorMessage"] = "The service kdumpd ended while it worked\njournalctl -u kdumpd"
        loop.quit()

    def interrupt() -> bool:
        connection.call(NAME, path, _JOB, "Cancel", None, None, Gio.DBusCallFlags.NONE, _STATUS_MS, None, None)
        return bool(GLib.SOURCE_CONTINUE)

    # Before there is a job: an interrupt that comes meanwhile is carried out when the loop runs.
    GLib.unix_signal_add(GLib.PRIORITY_HIGH, signal.SIGINT, interrupt)
    path = _call(INTERFACE, "StartJob", GLib.Variant("(s)", (kind,)), _WORK_MS).unpack()[0]
    flags = Gio.DBusSignalFlags.NONE
    connection.signal_subscribe(NAME, _PROPERTIES, "PropertiesChanged", path, None, flags, changed)
    Gio.bus_watch_name_on_connection(connection, NAME, Gio.BusNameWatcherFlags.NONE, None, vanished)
    # From here on nothing is missed; what happened before is asked for.
    arguments = GLib.Variant("(s)", (_JOB,))
    try:
        take(_call(_PROPERTIES, "GetAll", arguments, _WORK_MS, path=path).unpack()[0])
    except ServiceUnreachableError:
        vanished(None, NAME)
    if seen["State"] in ("queued", "running"):
        loop.run()
    if seen["State"] != "done":
        raise _error(seen["ErrorName"], seen["ErrorMessage"])


def test_crash(*, interactive: bool) -> str:
    """Has the service crash this machine, which it does a second later; the id of the test. Raises KdumpError.

    `interactive` lets polkit ask a person who is no root.
    """
    flags = Gio.DBusCallFlags.ALLOW_INTERACTIVE_AUTHORIZATION if interactive else Gio.DBusCallFlags.NONE
    answer = _call(INTERFACE, "TestCrash", None, _PERSON_MS if interactive else _WORK_MS, flags=flags)
    return str(answer.unpack()[0])


def nudge(method: str) -> None:
    """Calls a method without arguments of a service that runs. Raises ServiceUnreachableError when none does."""
    _call(INTERFACE, method, None, _STATUS_MS)


def follow(
    on_state: Callable[[Mapping[str, Any]], None],
    on_event: Callable[[str, list[str]], None],
    on_gone: Callable[[], None],
) -> None:
    """Reports changes until SIGINT or SIGTERM: all properties after each change, other signals by their name.

    Raises ServiceUnreachableError when there is no bus.
    """
    connection = _connect()
    loop = GLib.MainLoop()
    seen: dict[str, Any] = {}
    problem: list[Exception] = []

    def guarded(report: Callable[..., None], *words: Any) -> None:
        """What is raised in a callback would only be printed there: it ends the loop and is raised behind it."""
        try:
            report(*words)
        except Exception as error:
            problem.append(error)
            loop.quit()

    def changed(_bus: Any, _sender: str, _path: str, _interface: str, _name: str, arguments: GLib.Variant) -> None:
        interface, values, _ = arguments.unpack()
        if interface == INTERFACE and seen:
            seen.update(values)
            guarded(on_state, seen)

    def signalled(_bus: Any, _sender: str, _path: str, _interface: str, name: str, arguments: GLib.Variant) -> None:
        guarded(on_event, name, [str(word) for word in arguments.unpack()])

    def appeared(_bus: Any, _name: str, _owner: str) -> None:
        try:
            seen.update(properties())
        except ServiceUnreachableError:
            return  # gone again; `vanished` tells
        guarded(on_state, seen)

    def vanished(_bus: Any, _name: str) -> None:
        seen.clear()
        guarded(on_gone)

    def subscribe(interface: str, path: str | None, receive: Callable[..., None]) -> None:
        connection.signal_subscribe(NAME, interface, None, path, None, Gio.DBusSignalFlags.NONE, receive)

    subscribe(_PROPERTIES, PATH, changed)
    subscribe(INTERFACE, None, signalled)
    Gio.bus_watch_name_on_connection(connection, NAME, Gio.BusNameWatcherFlags.NONE, appeared, vanished)
    for number in (signal.SIGINT, signal.SIGTERM):
        GLib.unix_signal_add(GLib.PRIORITY_HIGH, number, loop.quit)
    loop.run()
    if problem:
        raise problem[0]


def _connect() -> Gio.DBusConnection:
    """The system bus. Raises ServiceUnreachableError."""
    try:
        return Gio.bus_get_sync(Gio.BusType.SYSTEM, None)
    except GLib.Error as error:
        raise _translate(error) from error


def _wake(on_wait: Callable[[], None]) -> None:
    """Has the service started where none runs, and waits for it, which takes long on a machine that boots.

    A bus gives up after 25 s (dbus-daemon.1, service_start_timeout), while systemd goes on with the start.
    """
    arguments = GLib.Variant("(s)", (NAME,))
    end = time.monotonic() + _START_SECONDS
    while not _ask_bus("NameHasOwner", arguments):
        if time.monotonic() >= end:
            within = f"within {_START_SECONDS:.0f} s"
            raise ServiceUnreachableError(f"The service kdumpd did not start {within}", hint="systemctl status kdumpd")
        on_wait()
        _ask_bus("StartServiceByName", GLib.Variant("(su)", (NAME, 0)))


def _ask_bus(method: str, arguments: GLib.Variant) -> Any:
    """Calls a method of the bus itself: what it answers, None when it waits no longer for what it was asked for.

    Raises ServiceUnreachableError.
    """
    none, wait_ms = Gio.DBusCallFlags.NONE, int(_START_SECONDS * 1000)
    try:
        answer = _connect().call_sync(_BUS, _BUS_PATH, _BUS, method, arguments, None, none, wait_ms, None)
    except GLib.Error as error:
        if Gio.DBusError.get_remote_error(error) == _SLOW:
            return None
        raise _translate(error) from error
    return answer.unpack()[0]


def _call(
    interface: str,
    method: str,
    arguments: GLib.Variant | None,
    wait_ms: int,
    *,
    path: str = PATH,
    flags: Gio.DBusCallFlags = Gio.DBusCallFlags.NO_AUTO_START,
) -> GLib.Variant:
    try:
        return _connect().call_sync(NAME, path, interface, method, arguments, None, flags, wait_ms, None)
    except GLib.Error as error:
        raise _translate(error) from error


def _translate(error: GLib.Error) -> KdumpError:
    name = Gio.DBusError.get_remote_error(error) or ""
    return _error(name, error.message.removeprefix(f"GDBus.Error:{name}: "))


def _error(name: str, text: str) -> KdumpError:
    """Our own class for an error on the bus; its text is a sentence and, in a second line, what mends it."""
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
