# SPDX-License-Identifier: GPL-2.0-or-later
"""The object on the bus: org.kdumpd.Kdump1.Manager, as units/org.kdumpd.Kdump1.xml describes it.

Translates between the engine and D-Bus types. Decides nothing.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import threading
from pathlib import Path
from typing import Any, Protocol

from gi.repository import GLib

import kdumpd
from kdumpd.crashes.index import Crash
from kdumpd.errors import UnsupportedError
from kdumpd.service.dbus.adapter import job_path, root_only, signal
from kdumpd.service.jobs import Job
from kdumpd.service.model import Reason
from kdumpd.service.status import Status

INTERFACE = "org.kdumpd.Kdump1.Manager"
Outcome = concurrent.futures.Future[None]  # the adapter answers the call when it is done
_FILES = {INTERFACE: "org.kdumpd.Kdump1.xml"}


class Actions(Protocol):
    """What the bus may ask the engine for at once; all else is a job."""

    def crashes(self) -> tuple[Crash, ...]:
        """The crashes that arrived."""

    def changed(self, what: str) -> None:
        """Something about the machine is not what it was."""


class Jobs(Protocol):
    """What the bus may ask for and has to wait for."""

    def start(self, kind: str) -> Job:
        """A job of that kind. Raises UsageError or BusyError."""


def introspection_xml(interface: str) -> str:
    """The XML of an interface: beside the package in a checkout, else where it was installed."""
    name = _FILES.get(interface, f"{interface}.xml")
    places = (
        Path(__file__).parents[3] / "units" / name,
        Path("/usr/share/dbus-1/interfaces") / name,
    )
    for place in places:
        if place.is_file():
            return place.read_text(encoding="utf-8")
    raise UnsupportedError(f"{places[1]} is missing", hint="install the package kdumpd again")


class Manager:
    """See the XML. Properties answer from the last published status, so they never block."""

    PropertiesChanged = signal()
    CrashAdded = signal()

    def __init__(self, actions: Actions, jobs: Jobs, status: Status) -> None:
        type(self).dbus = introspection_xml(INTERFACE)
        self._actions = actions
        self._jobs = jobs
        self._status = status
        self._lock = threading.Lock()

    dbus: str = ""

    def publish(self, status: Status) -> None:
        """Takes over `status` and tells the bus what changed, in one signal. Any thread may call it."""
        with self._lock:
            before = _properties(self._status)
            after = _properties(status)
            self._status = status
            changed = {name: value for name, value in after.items() if before[name] != value}
            if changed:
                packed = {name: _packed(name, value) for name, value in changed.items()}
                # A bus that goes away at this moment: the next one is asked for all properties anyway.
                with contextlib.suppress(GLib.Error):
                    self.PropertiesChanged(INTERFACE, packed, [])

    def add_crash(self, crash: Crash) -> None:
        """Tells the bus of a crash that was found. Any thread may call it."""
        with contextlib.suppress(GLib.Error):  # whoever comes later finds it with ListCrashes
            self.CrashAdded(_text(crash.name), crash.standing.value)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        try:
            return _packed(name, _properties(self._status)[name])
        except KeyError:
            raise AttributeError(name) from None

    @root_only
    def Load(self) -> Outcome:
        """See the XML."""
        return self._jobs.start("load").outcome

    @root_only
    def Unload(self) -> Outcome:
        """See the XML."""
        return self._jobs.start("unload").outcome

    @root_only
    def Reload(self) -> Outcome:
        """See the XML."""
        return self._jobs.start("reload").outcome

    @root_only
    def Rebuild(self) -> Outcome:
        """See the XML."""
        return self._jobs.start("rebuild").outcome

    @root_only
    def StartJob(self, kind: str) -> str:
        """See the XML."""
        return job_path(self._jobs.start(kind).number)

    @root_only
    def KernelsChanged(self) -> None:
        """See the XML."""
        self._actions.changed("hook")

    @root_only
    def ListCrashes(self) -> list[dict[str, GLib.Variant]]:
        """See the XML."""
        return [_crash(crash) for crash in self._actions.crashes()]


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
    }


def _packed(name: str, value: Any) -> Any:
    return [_reason(reason) for reason in value] if name == "Reasons" else value


def _reason(reason: Reason) -> dict[str, GLib.Variant]:
    return {
        "code": GLib.Variant("s", reason.code.value),
        "sentence": GLib.Variant("s", _text(reason.sentence)),
        "cure": GLib.Variant("s", _text(reason.cure)),
    }


def _crash(crash: Crash) -> dict[str, GLib.Variant]:
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
    packed = {name: GLib.Variant("s", _text(value)) for name, value in texts.items() if value is not None}
    packed.update({name: GLib.Variant("t", value) for name, value in numbers.items() if value is not None})
    return packed


def _text(text: str) -> str:
    """What D-Bus takes for a string: no NUL, no lone surrogates (file names that are no UTF-8 have them)."""
    return str(text).replace("\0", "\N{REPLACEMENT CHARACTER}").encode(errors="replace").decode()
