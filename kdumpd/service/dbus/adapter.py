# SPDX-License-Identifier: GPL-2.0-or-later
"""pydbus, with its faults cured. The only module that imports it.

What stock pydbus 0.6 does, and what stands here instead (the calls themselves are `calls.py`):

- methods run in the main loop, so that one slow method stops all: methods marked `off_loop` run in a small pool, and
  one that returns a future is answered when that is done, without holding a thread;
- its polkit helper waits for the answer: here nothing does;
- each error reaches the caller as `unknown.X` and is logged with a traceback: ours go out with their own name;
- a published name may be taken over by another program: it is requested without that permission;
- each call leaks a reference on GLib before 2.84: it is dropped by hand, once per call;
- setting a property tells nobody: `PropertiesChanged` is emitted by the object, several changes at once;
- signals keep each object that was ever registered: `Link.withdraw` takes it out of their maps;
- a connection that was lost is freed with the GIL held, which may hang the process: none is ever freed;
- it knows no ObjectManager: `tree.py` is one.

Knows nothing of crash dumps.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pydbus
import pydbus.generic
import pydbus.registration
from gi.repository import Gio, GLib

from kdumpd.errors import KdumpError, ServiceUnreachableError
from kdumpd.service.dbus.calls import PROPERTIES, Call, ask_bus
from kdumpd.service.dbus.tree import Managed, Tree

BUS_NAME = "org.kdumpd.Kdump1"
OBJECT_PATH = "/org/kdumpd/Kdump1"
# RequestName: flags and answer, see the D-Bus specification. Not among the flags: ALLOW_REPLACEMENT.
_DO_NOT_QUEUE = 4
_PRIMARY_OWNER = 1

signal = pydbus.generic.signal


def job_path(number: int) -> str:
    """The object path of a job."""
    return f"{OBJECT_PATH}/job/{number}"


class _Wrapper(pydbus.registration.ObjectWrapper):  # type: ignore[misc]  # pydbus is not typed
    """Takes the calls for one object."""

    def call_method(
        self,
        connection: Gio.DBusConnection,
        sender: str,
        object_path: str,
        interface_name: str,
        method_name: str,
        parameters: GLib.Variant,
        invocation: Gio.DBusMethodInvocation,
    ) -> None:
        """Hands `invocation` to the method that is meant: one of the object, or Get and GetAll of the wrapper."""
        if interface_name == PROPERTIES:
            method = getattr(self, method_name, None)
            signature = {"Get": ["v"], "GetAll": ["a{sv}"]}.get(method_name, [])
        else:
            method = getattr(self.object, method_name, None)
            signature = self.outargs.get(f"{interface_name}.{method_name}", [])
        Call(invocation, method, signature).begin()


pydbus.registration.ObjectWrapper = _Wrapper


# A connection is never let go. Its last reference would be dropped by the garbage collector, which holds the GIL, while
# GDBus's own thread holds a lock of the connection and waits for the GIL: both wait for ever. A bus is restarted so
# rarely that what is kept does not matter.
_KEPT: list[tuple[str, Any]] = []


def _connect(where: str) -> Any:
    """A connection to the bus at that address: the one there is while it is open. Raises GLib.Error."""
    for address, bus in _KEPT:
        if address == where and not bus.con.is_closed():
            return bus
    bus = pydbus.connect(where)
    _KEPT.append((where, bus))
    return bus


class Link:
    """A connection to the bus with one object on it and the name owned."""

    def __init__(self, service: object, tree: Tree, *, address: str | None, on_closed: Callable[[], None]) -> None:
        """Publishes `service`. Without `address` the system bus is used. `tree` hears of all other objects.

        Raises ServiceUnreachableError when there is no bus, or the name may not be had.
        """
        try:
            where = address or os.environ.get("DBUS_SYSTEM_BUS_ADDRESS")
            where = where or Gio.dbus_address_get_for_bus_sync(Gio.BusType.SYSTEM, None)
            self._bus = _connect(where)
        except GLib.Error as error:
            raise ServiceUnreachableError(f"The system bus cannot be used: {error.message}") from error
        self._bus.con.set_exit_on_close(False)
        self._tree = tree
        self._more: dict[str, tuple[object, Any]] = {}
        self._registration = self._bus.register_object(OBJECT_PATH, service, None)
        try:
            self._own_name()
        except KdumpError:
            self._registration.unregister()
            raise
        self._bus.con.connect("closed", lambda *_: on_closed())

    def _own_name(self) -> None:
        """Asks the bus itself: pydbus would introspect it first, and lets others take the name by default."""
        arguments = GLib.Variant("(su)", (BUS_NAME, _DO_NOT_QUEUE))
        try:
            answer = ask_bus(self._bus.con, "RequestName", arguments, "(u)")
        except GLib.Error as error:
            raise ServiceUnreachableError(f"The bus name {BUS_NAME} cannot be had: {error.message}") from error
        if answer != _PRIMARY_OWNER:
            raise ServiceUnreachableError(
                f"The bus name {BUS_NAME} cannot be had: another program has it",
                hint="another kdumpd runs: systemctl status kdumpd",
            )

    def publish(self, path: str, thing: Managed) -> None:
        """Puts another object on the bus. It has a `dbus` attribute with its XML, as pydbus wants it."""
        self._more[path] = (thing, self._bus.register_object(path, thing, None))
        self._tree.add(path, thing)

    def withdraw(self, path: str) -> None:
        """Takes an object from the bus that `publish` put there."""
        thing, registration = self._more.pop(path)
        self._tree.remove(path)
        registration.unregister()
        for member in vars(type(thing)).values():
            if isinstance(member, signal):
                member.map.pop(thing, None)
        emitters = _Wrapper.SignalEmitted.map
        for wrapper in [wrapper for wrapper in emitters if wrapper.object is thing]:
            del emitters[wrapper]

    def close(self) -> None:
        """Gives the name back and leaves the bus; a connection that is gone already is fine."""
        for path in list(self._more):
            self.withdraw(path)
        self._registration.unregister()
        if not self._bus.con.is_closed():
            self._bus.con.close_sync(None)
