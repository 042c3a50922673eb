# SPDX-License-Identifier: GPL-2.0-or-later
"""Jobs on the bus: org.kdumpd.Kdump1.Job, as units/org.kdumpd.Kdump1.Job.xml describes it. Decides nothing."""

from __future__ import annotations

import contextlib
import threading
from typing import Any

from gi.repository import GLib

from kdumpd.service.dbus.adapter import Link, job_path, signal
from kdumpd.service.dbus.calls import needs
from kdumpd.service.dbus.polkit import Privilege
from kdumpd.service.dbus.text import clean
from kdumpd.service.dbus.tree import Interfaces
from kdumpd.service.dbus.xml import introspection_xml
from kdumpd.service.jobs import Job, JobQueue, JobState

INTERFACE = "org.kdumpd.Kdump1.Job"


class JobObject:
    """See the XML."""

    PropertiesChanged = signal()
    Completed = signal()
    dbus: str = ""

    def __init__(self, job: Job) -> None:
        type(self).dbus = introspection_xml(INTERFACE)
        self._job = job
        self._shown = _properties(job)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name not in (shown := _properties(self._job)):
            raise AttributeError(name)
        return shown[name]

    def show(self) -> None:
        """Tells the bus what changed since the last time, and once that the job is over."""
        before, self._shown = self._shown, _properties(self._job)
        changed = {name: value for name, value in self._shown.items() if before[name] != value}
        if not changed:
            return
        with contextlib.suppress(GLib.Error):  # the bus went away: the outcome can be asked for on the next one
            self.PropertiesChanged(INTERFACE, changed, [])
            # Of what was shown: the job itself may be further by now, and is shown again then.
            if "State" in changed and JobState(self._shown["State"]).over:
                self.Completed(*(self._shown[name] for name in ("State", "ErrorName", "ErrorMessage")))

    def managed(self) -> Interfaces:
        """For the ObjectManager."""
        return {
            INTERFACE: {
                name: GLib.Variant("d" if isinstance(value, float) else "s", value)
                for name, value in _properties(self._job).items()
            }
        }

    @needs(Privilege.MANAGE)
    def Cancel(self) -> None:
        """See the XML."""
        self._job.cancel()


class JobBoard:
    """Keeps the bus in step with the queue: one object for each job that it knows."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._objects: dict[int, JobObject] = {}
        self._link: Link | None = None

    def attach(self, link: Link | None, queue: JobQueue) -> None:
        """Puts the jobs of `queue` on a new connection; None when there is none any more."""
        with self._lock:
            self._link = link
            self._objects.clear()
            for job in queue.jobs() if link is not None else ():
                self._publish(job)

    def show(self, job: Job, queue: JobQueue) -> None:
        """A job is new, changed, or over. Called in any thread."""
        with self._lock:
            if self._link is None:
                return
            if job.number not in self._objects:
                self._publish(job)
                known = {one.number for one in queue.jobs()} | {job.number}
                for number in [number for number in self._objects if number not in known]:
                    self._withdraw(number)
            self._objects[job.number].show()

    def _publish(self, job: Job) -> None:
        assert self._link is not None
        self._objects[job.number] = JobObject(job)
        self._link.publish(job_path(job.number), self._objects[job.number])

    def _withdraw(self, number: int) -> None:
        assert self._link is not None
        del self._objects[number]
        self._link.withdraw(job_path(number))


def _properties(job: Job) -> dict[str, Any]:
    view = job.view
    error = view.error
    return {
        "Kind": job.kind,
        "State": view.state.value,
        "Phase": view.phase,
        "Progress": view.progress,
        "ErrorName": "" if error is None else error.dbus_name,
        "ErrorMessage": "" if error is None else _message(error.sentence, error.hint),
    }


def _message(sentence: str, hint: str | None) -> str:
    text = sentence if hint is None else f"{sentence}\n{hint}"
    return clean(text)
