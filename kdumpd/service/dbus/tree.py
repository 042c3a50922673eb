# SPDX-License-Identifier: GPL-2.0-or-later
"""The objects below the manager, as org.freedesktop.DBus.ObjectManager shows them. Knows not what they are."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import Protocol

from gi.repository import GLib

Interfaces = dict[str, dict[str, GLib.Variant]]


class Managed(Protocol):
    """An object that can be listed."""

    dbus: str

    def managed(self) -> Interfaces:
        """Its interfaces with their properties."""


class Tree:
    """What lies on the bus now. `added` and `removed` emit the signals of the ObjectManager."""

    def __init__(self, added: Callable[[str, Interfaces], None], removed: Callable[[str, list[str]], None]) -> None:
        self._added = added
        self._removed = removed
        self._lock = threading.Lock()
        self._things: dict[str, Managed] = {}

    def add(self, path: str, thing: Managed) -> None:
        """`thing` is on the bus. Any thread may call it."""
        with self._lock:
            self._things[path] = thing
        with contextlib.suppress(GLib.Error):  # the bus went away: the next one is asked for all
            self._added(path, thing.managed())

    def remove(self, path: str) -> None:
        """It is no longer."""
        with self._lock:
            thing = self._things.pop(path, None)
        if thing is not None:
            with contextlib.suppress(GLib.Error):
                self._removed(path, list(thing.managed()))

    def listed(self) -> dict[str, Interfaces]:
        """All of them by path, for GetManagedObjects."""
        with self._lock:
            things = dict(self._things)
        return {path: thing.managed() for path, thing in things.items()}
