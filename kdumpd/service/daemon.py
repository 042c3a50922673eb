# SPDX-License-Identifier: GPL-2.0-or-later
"""The daemon's frame: the main loop, signals, the bus, the service manager. All work is done by the engine's thread.

The machine is armed without a bus too: the daemon starts, tells the journal, and tries the bus again at each tick.
"""

from __future__ import annotations

import logging
import signal
import sys
import time
from collections import deque
from pathlib import Path

from gi.repository import GLib

from kdumpd.crashes.index import Crash
from kdumpd.errors import ServiceUnreachableError
from kdumpd.host.kexec import KexecLoader
from kdumpd.host.units import have_units
from kdumpd.service import notify
from kdumpd.service.actions import Actor, Builder, tell_loaded, tell_unloaded
from kdumpd.service.ahead import Ahead
from kdumpd.service.builder import ImageBuilder
from kdumpd.service.crashduty import CrashDuty
from kdumpd.service.dbus.adapter import Link
from kdumpd.service.dbus.crash import CrashBoard
from kdumpd.service.dbus.job import JobBoard
from kdumpd.service.dbus.manager import Manager
from kdumpd.service.early import Early
from kdumpd.service.engine import Engine
from kdumpd.service.jobs import JobQueue
from kdumpd.service.journal import Event, Journal
from kdumpd.service.options import Options
from kdumpd.service.silent import read_silent
from kdumpd.service.status import Status
from kdumpd.service.watch import Watcher

_STOP_SECONDS = 10.0
_PATIENCE_SECONDS = 5.0
# Nothing should be missed by the watches; should it be all the same, it is found after this time.
_SURE_SECONDS = 3600.0
_AGAIN: bool = GLib.SOURCE_CONTINUE


class Daemon:
    """One run of the service."""

    def __init__(self, options: Options, *, loader: KexecLoader, early: Early, builder: Builder | None = None) -> None:
        self._places = options.places
        self._early = early
        self._bus_address = options.bus_address
        self._interval = options.interval
        self._journal = Journal()
        units = options.root == Path("/") and have_units()
        self._builder: Builder = builder or ImageBuilder(self._places, self._report, units=units)
        actor = Actor(self._places, loader, self._builder, self._journal)
        ahead = builder or ImageBuilder(self._places, lambda phase, progress: None, units=units)
        self._ahead = Ahead(self._places, ahead, self._journal)
        self._watcher = Watcher(lambda kind: self._engine.changed(kind), root=options.root)
        self._crash_board = CrashBoard()
        self._duty = CrashDuty(self._places, self._journal)
        self._new_crashes: deque[Crash] = deque()
        self._engine = Engine(
            self._places,
            actor,
            self._journal,
            self._show,
            on_changes=self._ahead.changed,
            watch=self._watcher.update,
            on_crashes=self._crash_board.show,
            on_crash=self._on_crash,
            units=units,
        )
        self._silent = read_silent(options.root)
        self._loop = GLib.MainLoop()
        self._board = JobBoard()
        self._jobs = JobQueue(
            self._engine.do,
            {
                "load": self._engine.load,
                "unload": self._engine.unload,
                "reload": self._engine.reload,
                "rebuild": self._engine.rebuild,
            },
            interrupt=self._builder.cancel,
            on_change=lambda job: self._board.show(job, self._jobs),
        )
        self._manager: Manager | None = None
        self._link: Link | None = None
        self._bus_trouble = False
        self._status_line = ""
        self._watchdog = False
        self._looked = time.monotonic()
        self._exit_code = 0

    def run(self) -> int:
        """Runs until SIGTERM or SIGINT; returns the exit status."""
        logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="<3>%(name)s: %(message)s")
        for folder in (self._places.state_dir, self._places.run_dir):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._watcher.attach()
        self._tell_early()
        self._manager = Manager(self._engine, self._jobs, self._engine.first_status())
        self._connect()
        # The first thing that the engine does: a look at what is watched from now on would come in between.
        self._engine.do(self._engine.check)
        self._engine.start()
        self._add_sources()
        notify.ready(self._status_line)
        self._ahead.start()
        self._loop.run()
        return self._stop()

    def _tell_early(self) -> None:
        """The journal hears of what was loaded before there was one to tell."""
        while not self._early.wait(_PATIENCE_SECONDS):
            notify.extend(4 * _PATIENCE_SECONDS)  # the loader has minutes, the start of a service 90 s
        armed = self._early.armed
        if armed is None:
            return
        if armed.again:
            tell_unloaded(self._journal, armed.release, reports=False)
        tell_loaded(self._journal, armed)

    def _add_sources(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            GLib.unix_signal_add(GLib.PRIORITY_HIGH, number, self._on_stop)
        GLib.unix_signal_add(GLib.PRIORITY_DEFAULT, signal.SIGHUP, self._on_hangup)
        half = notify.watchdog_usec()
        self._watchdog = half is not None
        seconds = min(self._interval, self._interval if half is None else half / 1e6)
        GLib.timeout_add(max(1, int(seconds * 1000)), self._on_tick)

    def _on_tick(self) -> bool:
        """The only thing that an idle service wakes up for."""
        if self._watchdog:
            notify.watchdog()
        if self._link is None:
            self._connect()
        silent = read_silent(self._places.root)
        if silent != self._silent:
            self._silent = silent
            self._engine.changed("silent")
        self._engine.reach.tick()
        now = time.monotonic()
        if now - self._looked >= _SURE_SECONDS:
            self._looked = now
            self._engine.changed("hour")
        return _AGAIN

    def _on_hangup(self) -> bool:
        notify.reloading()
        self._engine.reach.hint(0.0)
        self._engine.do(self._read_again)
        return _AGAIN

    def _read_again(self) -> None:
        """Ready is said as soon as the configuration was read: a build that it asks for may take minutes."""
        try:
            self._engine.look()
        finally:
            notify.ready(self._status_line)
        self._engine.check(patient=False)

    def _on_stop(self) -> bool:
        notify.stopping()
        self._loop.quit()
        return _AGAIN

    def _connect(self) -> None:
        """Gets onto the bus if it can be had; says so once when it cannot."""
        assert self._manager is not None
        try:
            self._link = Link(
                self._manager, self._manager.tree, address=self._bus_address, on_closed=self._on_bus_closed
            )
            self._board.attach(self._link, self._jobs)
            self._crash_board.attach(self._link)
            self._bus_trouble = False
            self._tell_crashes()
        except ServiceUnreachableError as error:
            if not self._bus_trouble:
                self._bus_trouble = True
                self._journal.tell(Event.FAULT, f"No D-Bus: {error}; the machine is kept armed without it")

    def _on_bus_closed(self) -> None:
        if self._link is not None:
            self._board.attach(None, self._jobs)
            self._crash_board.attach(None)
            self._link.close()
            self._link = None

    def _show(self, status: Status) -> None:
        """Takes a new status to the bus and to the service manager. Called by the engine, in any thread."""
        if status.activity:
            self._jobs.report(status.activity)
        if self._manager is not None:
            self._manager.publish(status)
        if not status.activity:
            self._jobs.settle(status.last_error)  # who hears of the end finds the outcome in the properties
        line = f"{status.activity}: {status.release}" if status.activity else status.state.headline
        if line != self._status_line:
            self._status_line = line
            notify.status(line)

    def _on_crash(self, crash: Crash) -> None:
        """A crash was found that was not there before. Called by the engine, in any thread."""
        self._new_crashes.append(crash)
        self._tell_crashes()
        self._duty.add(crash)

    def _tell_crashes(self) -> None:
        """Signals what was found, as soon as there is a bus: at the start of the service it is found before."""
        while self._manager is not None and self._link is not None:
            try:
                self._manager.add_crash(self._new_crashes.popleft())
            except IndexError:
                return

    def _report(self, phase: str, progress: float) -> None:
        """What a build does now."""
        self._jobs.report(f"building: {phase}", progress)

    def _stop(self) -> int:
        """Leaves: an unfinished build is ended, the capture kernel stays loaded."""
        self._ahead.stop()
        self._builder.stop()
        self._engine.stop(_STOP_SECONDS)
        self._jobs.stop()
        if self._link is not None:
            self._link.close()
        return self._exit_code
