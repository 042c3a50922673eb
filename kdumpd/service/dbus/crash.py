# SPDX-License-Identifier: GPL-2.0-or-later
"""Crashes on the bus: org.kdumpd.Kdump1.Crash, as units/org.kdumpd.Kdump1.Crash.xml describes it. Decides nothing."""

from __future__ import annotations

import threading

from gi.repository import GLib

from kdumpd.crashes.index import Crash
from kdumpd.service.dbus.adapter import OBJECT_PATH, Link
from kdumpd.service.dbus.calls import needs
from kdumpd.service.dbus.polkit import Privilege
from kdumpd.service.dbus.text import clean
from kdumpd.service.dbus.tree import Interfaces
from kdumpd.service.dbus.xml import introspection_xml

INTERFACE = "org.kdumpd.Kdump1.Crash"
_SHOWN = 256  # the newest ones; ListCrashes has all


def crash_path(name: str) -> str:
    """The object path of a crash; bytes that a path may not have are written as _2d, for example."""
    raw = name.encode(errors="surrogateescape")
    escaped = "".join(chr(byte) if byte < 128 and chr(byte).isalnum() else f"_{byte:02x}" for byte in raw)
    return f"{OBJECT_PATH}/crash/{escaped}"


def describe(crash: Crash) -> dict[str, GLib.Variant]:
    """All that is known, among it texts out of crashed memory."""
    manifest = crash.manifest
    texts: dict[str, str | None] = {
        "name": crash.name,
        "path": str(crash.path),
        "result": crash.standing.value,
        "problem": crash.problem,
        "kernel": None if manifest is None else manifest.kernel,
        "panic": None if manifest is None else manifest.panic,
        "image_id": None if manifest is None else manifest.image_id,
    }
    numbers = {"time_usec": crash.time_usec, "took_usec": crash.took_usec, "dump_bytes": crash.dump_bytes}
    packed = {name: GLib.Variant("s", clean(value)) for name, value in texts.items() if value is not None}
    packed.update({name: GLib.Variant("t", value) for name, value in numbers.items() if value is not None})
    return packed


class CrashObject:
    """See the XML. Properties are for everybody, so nothing that came out of crashed memory is among them."""

    dbus: str = ""

    def __init__(self, crash: Crash) -> None:
        type(self).dbus = introspection_xml(INTERFACE)
        self.crash = crash

    @property
    def Result(self) -> str:
        """See the XML."""
        return self.crash.standing.value

    @property
    def TimeUsec(self) -> int:
        """See the XML."""
        return max(0, self.crash.time_usec)

    @property
    def TookUsec(self) -> int:
        """See the XML."""
        return self.crash.took_usec or 0

    @property
    def DumpBytes(self) -> int:
        """See the XML."""
        return self.crash.dump_bytes or 0

    def managed(self) -> Interfaces:
        """For the ObjectManager."""
        numbers = {"TimeUsec": self.TimeUsec, "TookUsec": self.TookUsec, "DumpBytes": self.DumpBytes}
        values = {"Result": GLib.Variant("s", self.Result)}
        return {INTERFACE: values | {name: GLib.Variant("t", value) for name, value in numbers.items()}}

    @needs(Privilege.READ_DUMPS)
    def Describe(self) -> dict[str, GLib.Variant]:
        """See the XML."""
        return describe(self.crash)


class CrashBoard:
    """Keeps the bus in step with the crash folder: one object for each crash."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._link: Link | None = None
        self._crashes: tuple[Crash, ...] = ()
        self._shown: dict[str, Crash] = {}

    def attach(self, link: Link | None) -> None:
        """Puts the crashes on a new connection; None when there is none any more."""
        with self._lock:
            self._link = link
            self._shown.clear()
            self._sync()

    def show(self, crashes: tuple[Crash, ...]) -> None:
        """These are there now, oldest first. Called in any thread."""
        with self._lock:
            self._crashes = crashes[-_SHOWN:]
            self._sync()

    def _sync(self) -> None:
        if self._link is None:
            return
        wanted = {crash_path(crash.name): crash for crash in self._crashes}
        for path in [path for path, crash in self._shown.items() if wanted.get(path) != crash]:
            del self._shown[path]
            self._link.withdraw(path)
        for path, crash in wanted.items():
            if path not in self._shown:
                self._shown[path] = crash
                self._link.publish(path, CrashObject(crash))
