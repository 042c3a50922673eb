# SPDX-License-Identifier: GPL-2.0-or-later
"""May this caller do that? root may everything; others are asked about at polkit, where there is one.

The subject is the caller's name on the bus: a pid could belong to another program by the time that polkit looks.
units/org.kdumpd.Kdump1.policy names the privileges. Nothing here waits: an answer may take a person minutes.
"""

from __future__ import annotations

import enum
from collections.abc import Callable

from gi.repository import Gio, GLib

_NAME = "org.freedesktop.PolicyKit1"
_PATH = "/org/freedesktop/PolicyKit1/Authority"
_INTERFACE = "org.freedesktop.PolicyKit1.Authority"
_ALLOW_USER_INTERACTION = 1
_AT_ONCE_MS = 10_000
_PERSON_MS = 180_000


class Privilege(enum.StrEnum):
    """What a caller may be allowed to do; the end of the name of a polkit action."""

    MANAGE = "manage"  # load, unload, reload, rebuild, cancel
    READ_DUMPS = "read-dumps"  # what comes out of crashed memory
    TEST_CRASH = "test-crash"  # crash the machine

    @property
    def action(self) -> str:
        """The polkit action."""
        return f"org.kdumpd.Kdump1.{self}"


def ask(
    connection: Gio.DBusConnection,
    sender: str,
    privilege: Privilege,
    *,
    interactive: bool,
    done: Callable[[bool], None],
) -> None:
    """Calls `done` with polkit's answer, in the main loop; with False when there is none.

    `interactive` lets polkit ask a person, which only the caller can want.
    """
    subject = ("system-bus-name", {"name": GLib.Variant("s", sender)})
    flags = _ALLOW_USER_INTERACTION if interactive else 0
    arguments = GLib.Variant("((sa{sv})sa{ss}us)", (subject, privilege.action, {}, flags, ""))

    def finish(source: Gio.DBusConnection, result: Gio.AsyncResult) -> None:
        try:
            (allowed, _challenge, _details) = source.call_finish(result).unpack()[0]
        except GLib.Error:
            allowed = False  # no polkit on this machine, or it does not answer
        done(bool(allowed))

    connection.call(
        _NAME,
        _PATH,
        _INTERFACE,
        "CheckAuthorization",
        arguments,
        GLib.VariantType("((bba{ss}))"),
        Gio.DBusCallFlags.NONE,
        _PERSON_MS if interactive else _AT_ONCE_MS,
        None,
        finish,
    )
