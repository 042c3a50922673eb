# SPDX-License-Identifier: GPL-2.0-or-later
"""pydbus, with its faults cured. The only module that imports it.

What stock pydbus 0.6 does, and what stands here instead:

- methods run in the main loop, so that one slow method stops all: methods marked `off_loop` run in a small pool, and
  one that returns a future is answered when that is done, without holding a thread;
- each error reaches the caller as `unknown.X` and is logged with a traceback: ours go out with their own name;
- a published name may be taken over by another program: it is requested without that permission;
- each call leaks a reference on GLib before 2.84: it is dropped by hand, once per call;
- setting a property tells nobody: `PropertiesChanged` is emitted by the object, several changes at once;
- signals keep each object that was ever registered: `Link.withdraw` takes it out of their maps.

Knows nothing of crash dumps.
"""

from __future__ import annotations

import concurrent.futures
import ctypes
import logging
import os
from collections.abc import Callable
from typing import Any, ClassVar, TypeVar

import pydbus
import pydbus.generic
import pydbus.registration
from gi.repository import Gio, GLib

from kdumpd.errors import DeniedError, KdumpError, ServiceUnreachableError

BUS_NAME = "org.kdumpd.Kdump1"
OBJECT_PATH = "/org/kdumpd/Kdump1"
_DBUS = "org.freedesktop.DBus"
_PROPERTIES = "org.freedesktop.DBus.Properties"
_CALL_TIMEOUT_MS = 5000
_POOL_SIZE = 4
# RequestName: flags and answer, see the D-Bus specification. Not among the flags: ALLOW_REPLACEMENT.
_DO_NOT_QUEUE = 4
_PRIMARY_OWNER = 1
_LOG = logging.getLogger(__name__)

signal = pydbus.generic.signal


def job_path(number: int) -> str:
    """The object path of a job."""
    return f"{OBJECT_PATH}/job/{number}"


_Method = TypeVar("_Method", bound=Callable[..., Any])


def off_loop(method: _Method) -> _Method:
    """Marks a method that may take long or block: it runs in a thread of the pool."""
    method.__dict__["_off_loop"] = True
    return method


def root_only(method: _Method) -> _Method:
    """Marks a method that only uid 0 may call. Asking the bus for the uid blocks, so it runs off the loop too."""
    method.__dict__["_root_only"] = True
    return off_loop(method)


class _Wrapper(pydbus.registration.ObjectWrapper):  # type: ignore[misc]  # pydbus is not typed
    """Takes the calls for one object."""

    pool: ClassVar[concurrent.futures.ThreadPoolExecutor | None] = None

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
        """Answers `invocation`, here or in the pool."""
        if interface_name == _PROPERTIES:
            method = getattr(self, method_name, None)
            signature = {"Get": ["v"], "GetAll": ["a{sv}"]}.get(method_name, [])
        else:
            method = getattr(self.object, method_name, None)
            signature = self.outargs.get(f"{interface_name}.{method_name}", [])
        marks = getattr(method, "__dict__", {})

        def finish(outcome: Callable[[], Any]) -> None:
            try:
                _reply(invocation, signature, outcome())
            except Exception as error:
                # The edge of the process: whatever happened has to become an answer.
                _reply_error(invocation, interface_name, method_name, error)
            finally:
                _drop_leaked_reference(invocation)

        def run() -> Any:
            if method is None:
                raise KeyError(f"no method {method_name}")
            if marks.get("_root_only"):
                _require_root(connection, sender)
            return method(*parameters)

        def answer() -> None:
            begun: concurrent.futures.Future[Any] = concurrent.futures.Future()
            try:
                result = run()
                if isinstance(result, concurrent.futures.Future):
                    begun = result
                else:
                    begun.set_result(result)
            except Exception as error:
                begun.set_exception(error)
            begun.add_done_callback(lambda done: finish(done.result))

        if marks.get("_off_loop") and _Wrapper.pool is not None:
            _Wrapper.pool.submit(answer)
        else:
            answer()


pydbus.registration.ObjectWrapper = _Wrapper


def _reply(invocation: Gio.DBusMethodInvocation, signature: list[str], result: Any) -> None:
    if not signature:
        invocation.return_value(None)
        return
    values = (result,) if len(signature) == 1 else result
    invocation.return_value(GLib.Variant("(" + "".join(signature) + ")", values))


def _reply_error(invocation: Gio.DBusMethodInvocation, interface: str, member: str, error: Exception) -> None:
    if isinstance(error, KdumpError):
        # Two lines, so that a client can tell the cure from the sentence.
        text = error.sentence if error.hint is None else f"{error.sentence}\n{error.hint}"
        invocation.return_dbus_error(error.dbus_name, text)
    elif interface == _PROPERTIES and isinstance(error, KeyError):
        name = "PropertyReadOnly" if member == "Set" else "UnknownProperty"
        invocation.return_dbus_error(f"{_DBUS}.Error.{name}", f"{member}: {error}")
    else:
        _LOG.error("%s.%s failed", interface, member, exc_info=error)
        invocation.return_dbus_error(f"{_DBUS}.Error.Failed", f"{member} failed inside kdumpd; its journal says how")


def _require_root(connection: Gio.DBusConnection, sender: str) -> None:
    """Raises DeniedError unless the bus says that `sender` runs as root."""
    try:
        uid = _ask_bus(connection, "GetConnectionUnixUser", GLib.Variant("(s)", (sender,)), "(u)")
    except GLib.Error as error:
        raise DeniedError(f"The bus does not say who called: {error.message}") from error
    if uid != 0:
        raise DeniedError("Only root may do this", hint="use sudo")


def _ask_bus(connection: Gio.DBusConnection, method: str, arguments: GLib.Variant, reply: str) -> int:
    """One number from the bus itself. Raises GLib.Error."""
    answer = connection.call_sync(
        _DBUS,
        "/org/freedesktop/DBus",
        _DBUS,
        method,
        arguments,
        GLib.VariantType(reply),
        Gio.DBusCallFlags.NONE,
        _CALL_TIMEOUT_MS,
        None,
    )
    return int(answer.unpack()[0])


def _make_unref() -> Callable[[int], None] | None:
    """g_object_unref, on versions of GLib whose invocations carry one reference too many (glib!4427)."""
    if (GLib.MAJOR_VERSION, GLib.MINOR_VERSION) >= (2, 84):
        return None
    library = ctypes.CDLL("libgobject-2.0.so.0")
    library.g_object_unref.argtypes = [ctypes.c_void_p]
    library.g_object_unref.restype = None

    def unref(address: int) -> None:
        library.g_object_unref(address)

    return unref


_UNREF = _make_unref()


def _drop_leaked_reference(invocation: Gio.DBusMethodInvocation) -> None:
    if _UNREF is not None:
        _UNREF(hash(invocation))  # PyGObject's hash is the address of the object


class Link:
    """A connection to the bus with one object on it and the name owned."""

    def __init__(self, service: object, *, address: str | None, on_closed: Callable[[], None]) -> None:
        """Publishes `service`. Without `address` the system bus is used.

        Raises ServiceUnreachableError when there is no bus, or the name may not be had.
        """
        if _Wrapper.pool is None:
            _Wrapper.pool = concurrent.futures.ThreadPoolExecutor(_POOL_SIZE, thread_name_prefix="bus")
        try:
            where = address or os.environ.get("DBUS_SYSTEM_BUS_ADDRESS")
            where = where or Gio.dbus_address_get_for_bus_sync(Gio.BusType.SYSTEM, None)
            self._bus = pydbus.connect(where)
        except GLib.Error as error:
            raise ServiceUnreachableError(f"The system bus cannot be used: {error.message}") from error
        self._bus.con.set_exit_on_close(False)
        self._more: dict[str, tuple[object, Any]] = {}
        self._registration = self._bus.register_object(OBJECT_PATH, service, None)
        try:
            self._own_name()
        except KdumpError:
            self.close()
            raise
        self._bus.con.connect("closed", lambda *_: on_closed())

    def _own_name(self) -> None:
        """Asks the bus itself: pydbus would introspect it first, and lets others take the name by default."""
        arguments = GLib.Variant("(su)", (BUS_NAME, _DO_NOT_QUEUE))
        try:
            answer = _ask_bus(self._bus.con, "RequestName", arguments, "(u)")
        except GLib.Error as error:
            raise ServiceUnreachableError(f"The bus name {BUS_NAME} cannot be had: {error.message}") from error
        if answer != _PRIMARY_OWNER:
            raise ServiceUnreachableError(
                f"The bus name {BUS_NAME} cannot be had: another program has it",
                hint="another kdumpd runs: systemctl status kdumpd",
            )

    def publish(self, path: str, thing: object) -> None:
        """Puts another object on the bus. It has a `dbus` attribute with its XML, as pydbus wants it."""
        self._more[path] = (thing, self._bus.register_object(path, thing, None))

    def withdraw(self, path: str) -> None:
        """Takes an object from the bus that `publish` put there."""
        thing, registration = self._more.pop(path)
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
