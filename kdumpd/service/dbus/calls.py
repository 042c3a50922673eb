# SPDX-License-Identifier: GPL-2.0-or-later
"""One method call and its answer: where it runs, who may make it, what becomes of an error.

Knows GDBus, nothing of pydbus (`adapter.py` hands the calls over) and nothing of crash dumps.
"""

from __future__ import annotations

import concurrent.futures
import ctypes
import logging
import threading
from collections import Counter, deque
from collections.abc import Callable
from typing import Any, TypeVar

from gi.repository import Gio, GLib

from kdumpd.errors import DeniedError, KdumpError, LimitError
from kdumpd.service.dbus import polkit
from kdumpd.service.dbus.polkit import Privilege

_DBUS = "org.freedesktop.DBus"
PROPERTIES = "org.freedesktop.DBus.Properties"
_CALL_TIMEOUT_MS = 5000
_POOL_SIZE = 4
_CALLS_OF_ONE = 16
_CALLS_OF_ALL = 256  # of programs that are not known yet, for the moment that asking the bus takes
_TURN_PRIORITY = GLib.PRIORITY_DEFAULT + 10  # behind calls that have arrived and wait to be taken
_LOG = logging.getLogger(__name__)

_Method = TypeVar("_Method", bound=Callable[..., Any])


def off_loop(method: _Method) -> _Method:
    """Marks a method that may take long or block: it runs in a thread of the pool."""
    method.__dict__["_off_loop"] = True
    return method


def needs(privilege: Privilege) -> Callable[[_Method], _Method]:
    """Marks a method that root may call, and whoever has `privilege`. It runs off the loop."""

    def mark(method: _Method) -> _Method:
        method.__dict__["_privilege"] = privilege
        return off_loop(method)

    return mark


class Turns:
    """What the main loop answers itself: one call of each caller after the other, so that whoever asks a thousand
    times waits for himself, and nobody else does.
    """

    def __init__(self) -> None:
        self._waiting: dict[str, deque[Callable[[], None]]] = {}

    def add(self, sender: str, answer: Callable[[], None]) -> None:
        """`answer` is called when its turn has come. In the main loop only."""
        if not self._waiting:
            GLib.idle_add(self._next, priority=_TURN_PRIORITY)
        self._waiting.setdefault(sender, deque()).append(answer)

    def _next(self) -> bool:
        sender = next(iter(self._waiting))
        queue = self._waiting.pop(sender)
        answer = queue.popleft()
        if queue:
            self._waiting[sender] = queue  # at the end
        answer()
        return bool(self._waiting)


class Crowd:
    """How many calls of each caller wait for their answer: a bound for whoever only wants to keep others out.

    A caller is a program on the bus at first, and a user once the bus has said which one. Root has no bound as a user:
    others who wait, for a person's password say, never keep it out.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: Counter[str] = Counter()

    def enter(self, sender: str) -> bool:
        """One call more; False when there are too many of this caller, or of all of them."""
        with self._lock:
            if self._waiting[sender] >= _CALLS_OF_ONE or self._waiting.total() >= _CALLS_OF_ALL:
                return False
            self._waiting[sender] += 1
            return True

    def leave(self, sender: str) -> None:
        """The call has its answer."""
        with self._lock:
            self._waiting[sender] -= 1
            if self._waiting[sender] <= 0:
                del self._waiting[sender]


_CROWD = Crowd()
_TURNS = Turns()
_POOL = concurrent.futures.ThreadPoolExecutor(_POOL_SIZE, thread_name_prefix="bus")  # threads begin when needed


class Call:
    """One call. `method` is None when the object has none of that name; `signature` is that of the answer."""

    def __init__(
        self,
        invocation: Gio.DBusMethodInvocation,
        method: Callable[..., Any] | None,
        signature: list[str],
    ) -> None:
        self._invocation = invocation
        self._method = method
        self._signature = signature
        self._sender: str = invocation.get_sender() or ""
        self._connection: Gio.DBusConnection = invocation.get_connection()
        marks = getattr(method, "__dict__", {})
        self._off_loop = bool(marks.get("_off_loop"))
        self._privilege: Privilege | None = marks.get("_privilege")
        self._inside = ""  # as whom it is in the crowd

    def begin(self) -> None:
        """Answers later."""
        if not self._off_loop:
            _TURNS.add(self._sender, self._run)
        elif self._enter(self._sender):
            _POOL.submit(self._run if self._privilege is None else self._authorize)

    def _enter(self, name: str) -> bool:
        """Into the crowd, under another name than before; where that one has too many calls, the answer says so."""
        if not _CROWD.enter(name):
            self._fail(LimitError("Too many calls of this program or user wait for their answer", hint="wait for them"))
            return False
        if self._inside:
            _CROWD.leave(self._inside)
        self._inside = name
        return True

    def _authorize(self) -> None:
        """In the pool: the bus daemon answers at once. polkit may not, so its answer is not waited for."""
        assert self._privilege is not None
        try:
            uid = caller_uid(self._connection, self._sender)
            if uid == 0:
                self._run()
                return
            if not self._enter(f"user {uid}"):
                return
            flags = self._invocation.get_message().get_flags()
            interactive = bool(flags & Gio.DBusMessageFlags.ALLOW_INTERACTIVE_AUTHORIZATION)
            polkit.ask(self._connection, self._sender, self._privilege, interactive=interactive, done=self._decided)
        except (KdumpError, GLib.Error) as error:
            self._fail(error)

    def _decided(self, allowed: bool) -> None:
        assert self._privilege is not None
        if allowed:
            _POOL.submit(self._run)
        else:
            action = self._privilege.action
            self._fail(DeniedError(f"This needs root, or the polkit privilege {action}", hint="use sudo"))

    def _run(self) -> None:
        try:
            if self._method is None:
                raise KeyError(f"no method {self._invocation.get_method_name()}")
            result = self._method(*self._invocation.get_parameters())
        except Exception as error:
            # The edge of the process: whatever happened has to become an answer.
            self._fail(error)
            return
        if isinstance(result, concurrent.futures.Future):
            result.add_done_callback(self._settled)
        else:
            self._finish(lambda: result)

    def _settled(self, future: concurrent.futures.Future[Any]) -> None:
        self._finish(future.result)

    def _fail(self, error: Exception) -> None:
        def outcome() -> Any:
            raise error

        self._finish(outcome)

    def _finish(self, outcome: Callable[[], Any]) -> None:
        if self._inside:
            _CROWD.leave(self._inside)
        try:
            self._reply(outcome())
        except Exception as error:
            self._reply_error(error)
        finally:
            _drop_leaked_reference(self._invocation)

    def _reply(self, result: Any) -> None:
        if not self._signature:
            self._invocation.return_value(None)
            return
        values = (result,) if len(self._signature) == 1 else result
        self._invocation.return_value(GLib.Variant("(" + "".join(self._signature) + ")", values))

    def _reply_error(self, error: Exception) -> None:
        invocation = self._invocation
        interface, member = invocation.get_interface_name(), invocation.get_method_name()
        if isinstance(error, KdumpError):
            # Two lines, so that a client can tell the cure from the sentence.
            text = error.sentence if error.hint is None else f"{error.sentence}\n{error.hint}"
            invocation.return_dbus_error(error.dbus_name, text)
        elif interface == PROPERTIES and isinstance(error, KeyError):
            name = "PropertyReadOnly" if member == "Set" else "UnknownProperty"
            invocation.return_dbus_error(f"{_DBUS}.Error.{name}", f"{member}: {error}")
        else:
            _LOG.error("%s.%s failed", interface, member, exc_info=error)
            invocation.return_dbus_error(
                f"{_DBUS}.Error.Failed", f"{member} failed inside kdumpd; its journal says how"
            )


def caller_uid(connection: Gio.DBusConnection, sender: str) -> int:
    """Whom the bus says that `sender` runs as. Raises DeniedError."""
    try:
        return ask_bus(connection, "GetConnectionUnixUser", GLib.Variant("(s)", (sender,)), "(u)")
    except GLib.Error as error:
        raise DeniedError(f"The bus does not say who called: {error.message}") from error


def ask_bus(connection: Gio.DBusConnection, method: str, arguments: GLib.Variant, reply: str) -> int:
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
