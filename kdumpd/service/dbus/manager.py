# SPDX-License-Identifier: GPL-2.0-or-later
"""The object on the bus: org.kdumpd.Kdump1.Manager, as units/org.kdumpd.Kdump1.xml describes it.

Translates between the engine and D-Bus types. Decides nothing.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import threading
from typing import Any, Protocol

from gi.repository import GLib

import kdumpd
from kdumpd.crashes.index import Crash
from kdumpd.service.dbus.adapter import job_path, signal
from kdumpd.service.dbus.calls import needs
from kdumpd.service.dbus.crash import describe
from kdumpd.service.dbus.polkit import Privilege
from kdumpd.service.dbus.text import clean
from kdumpd.service.dbus.tree import Interfaces, Tree
from kdumpd.service.dbus.xml import introspection_xml
from kdumpd.service.jobs import Job
from kdumpd.service.model import LastCapture, LastRehearsal, LastTest, Reason
from kdumpd.service.status import Status

INTERFACE = "org.kdumpd.Kdump1.Manager"
Outcome = concurrent.futures.Future[None]  # the adapter answers the call when it is done


class Actions(Protocol):
    """What the bus may ask the engine for at once; all else is a job."""

    def crashes(self) -> tuple[Crash, ...]:
        """The crashes that arrived."""

    def changed(self, what: str) -> None:
        """Something about the machine is not what it was."""

    def test_crash(self) -> str:
        """Crashes the machine a moment later; the id of the test. Raises KdumpError."""


class Jobs(Protocol):
    """What the bus may ask for and has to wait for."""

    def start(self, kind: str) -> Job:
        """A job of that kind. Raises UsageError or BusyError."""


class Manager:
    """See the XML. Properties answer from the last published status, so they never block."""

    PropertiesChanged = signal()
    CrashAdded = signal()
    InterfacesAdded = signal()
    InterfacesRemoved = signal()

    def __init__(self, actions: Actions, jobs: Jobs, status: Status) -> None:
        type(self).dbus = introspection_xml(INTERFACE)
        self._actions = actions
        self._jobs = jobs
        self._shown = _properties(status)
        self._lock = threading.Lock()
        self.tree = Tree(
            lambda path, interfaces: self.InterfacesAdded(path, interfaces),
            lambda path, names: self.InterfacesRemoved(path, names),
        )

    dbus: str = ""

    def publish(self, status: Status) -> None:
        """Takes over `status` and tells the bus what changed, in one signal. Any thread may call it."""
        with self._lock:
            before, after = self._shown, _properties(status)
            self._shown = after
            changed = {name: value for name, value in after.items() if before[name] != value}
            if changed:
                packed = {name: _packed(name, value) for name, value in changed.items()}
                # A bus that goes away at this moment: the next one is asked for all properties anyway.
                with contextlib.suppress(GLib.Error):
                    self.PropertiesChanged(INTERFACE, packed, [])

    def add_crash(self, crash: Crash) -> None:
        """Tells the bus of a crash that was found. Any thread may call it."""
        with contextlib.suppress(GLib.Error):  # whoever comes later finds it with ListCrashes
            self.CrashAdded(clean(crash.name), crash.standing.value)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        try:
            return _packed(name, self._shown[name])
        except KeyError:
            raise AttributeError(name) from None

    def GetManagedObjects(self) -> dict[str, Interfaces]:
        """See org.freedesktop.DBus.ObjectManager."""
        return self.tree.listed()

    @needs(Privilege.MANAGE)
    def Load(self) -> Outcome:
        """See the XML."""
        return self._jobs.start("load").outcome

    @needs(Privilege.MANAGE)
    def Unload(self) -> Outcome:
        """See the XML."""
        return self._jobs.start("unload").outcome

    @needs(Privilege.MANAGE)
    def Reload(self) -> Outcome:
        """See the XML."""
        return self._jobs.start("reload").outcome

    @needs(Privilege.MANAGE)
    def Rebuild(self) -> Outcome:
        """See the XML."""
        return self._jobs.start("rebuild").outcome

    @needs(Privilege.MANAGE)
    def StartJob(self, kind: str) -> str:
        """See the XML."""
        return job_path(self._jobs.start(kind).number)

    @needs(Privilege.MANAGE)
    def KernelsChanged(self) -> None:
        """See the XML."""
        self._actions.changed("hook")

    @needs(Privilege.TEST_CRASH)
    def TestCrash(self) -> str:
        """See the XML."""
        return self._actions.test_crash()

    @needs(Privilege.READ_DUMPS)
    def ListCrashes(self) -> list[dict[str, GLib.Variant]]:
        """See the XML."""
        return [describe(crash) for crash in self._actions.crashes()]


def _properties(status: Status) -> dict[str, Any]:
    """All properties by name, in plain types that can be compared."""
    return {
        "Version": kdumpd.__version__,
        "State": status.state.rung.value,
        "Armed": status.state.rung.armed,
        "Reasons": status.state.reasons,
        "KernelRelease": status.release,
        "ReservedBytes": status.reserved_bytes,
        "RequiredBytes": status.required_bytes,
        "Loaded": status.loaded,
        "LoadedSinceUsec": status.loaded_since_usec,
        "ImagePath": status.image_path,
        "ImageId": status.image_id,
        "Activity": status.activity,
        "LastError": status.last_error,
        "Crashkernel": status.crashkernel,
        "NextCrashkernels": list(status.next_crashkernels),
        "Triggers": dict(status.triggers),
        "PanicTimeout": status.panic_timeout,
        "Lockdown": status.lockdown,
        "SecureBoot": status.secure_boot,
        "Hotplug": list(status.hotplug),
        "LastCapture": status.last_capture,
        "LastTest": status.last_test,
        "LastRehearsal": status.last_rehearsal,
    }


def _packed(name: str, value: Any) -> Any:
    """As the signature in the XML wants it."""
    if name == "Reasons":
        return [_reason(reason) for reason in value]
    if name in ("LastCapture", "LastTest", "LastRehearsal"):
        return {} if value is None else _known(value)
    return value


def _known(what: LastCapture | LastTest | LastRehearsal) -> dict[str, GLib.Variant]:
    return {
        name: GLib.Variant("s", clean(value)) if isinstance(value, str) else GLib.Variant("t", value)
        for name, value in what.known().items()
    }


def _reason(reason: Reason) -> dict[str, GLib.Variant]:
    return {
        "code": GLib.Variant("s", reason.code.value),
        "sentence": GLib.Variant("s", clean(reason.sentence)),
        "cure": GLib.Variant("s", clean(reason.cure)),
    }
