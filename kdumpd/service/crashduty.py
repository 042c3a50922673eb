# SPDX-License-Identifier: GPL-2.0-or-later
"""What is done about a crash that was found: programs of the administrator, and a check of all checksums.

Each in a thread of its own, one crash after the other: a dump may be as large as the disk, and a program may hang. The
programs never wait for a check: a crash is found once, and whoever ends this service meanwhile would take them away.
"""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path

from kdumpd.crashes.index import Crash, Standing
from kdumpd.crashes.verify import verify
from kdumpd.host.units import have_units, instance
from kdumpd.service import lean
from kdumpd.service.journal import Event, Journal
from kdumpd.service.places import Places

_SECONDS = 900.0
_PACKAGE_PARENT = Path(__file__).resolve().parents[2]


class CrashDuty:
    """`add` may be called by any thread; it returns at once."""

    def __init__(self, places: Places, journal: Journal) -> None:
        self._places = places
        self._journal = journal
        self._programs = _Line(self._call_programs, "programs")
        self._checks = _Line(self._check, "checks")

    def add(self, crash: Crash) -> None:
        """A crash that was not there before."""
        self._programs.add(crash)
        if crash.standing is Standing.COMPLETE:
            self._checks.add(crash)

    def _call_programs(self, crash: Crash) -> None:
        """As a unit of its own where systemd is there: the programs are not held by the sandbox of this service."""
        if self._places.root == Path("/") and have_units():
            # Also without programs: an administrator may have tied units to this one.
            unit = f"kdumpd-on-crash@{instance(crash.name)}.service"
            words = ["systemctl", "--no-ask-password", "--quiet", "start", "--no-block", unit]
        else:
            words = [sys.executable or "/usr/bin/python3", "-m", "kdumpd.crashes.on_crash"]
            words += ["--root", str(self._places.root), "--", crash.name]
        environ = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8", "PYTHONPATH": str(_PACKAGE_PARENT)}
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            done = subprocess.run(words, stdin=subprocess.DEVNULL, env=environ, timeout=_SECONDS, check=False)
            if done.returncode == 0:
                return
        self._journal.tell(Event.FAULT, f"What is to be run for crash {crash.name} failed", dump=str(crash.path))

    def _check(self, crash: Crash) -> None:
        problem = verify(crash)
        if problem is not None:
            words = f"The dump in {crash.path} is not what was written: {problem}"
            self._journal.tell(Event.DUMP_DAMAGED, words, dump=str(crash.path), reason=problem)


class _Line:
    """Crashes that wait for `work`, in a thread that is there while any do, and in nobody's way."""

    def __init__(self, work: Callable[[Crash], None], name: str) -> None:
        self._work = work
        self._name = name
        self._waiting: deque[Crash] = deque()
        self._running = False
        self._lock = threading.Lock()

    def add(self, crash: Crash) -> None:
        """To the end of the line."""
        with self._lock:
            self._waiting.append(crash)
            if not self._running:
                threading.Thread(target=self._run, name=self._name, daemon=True).start()
                self._running = True

    def _run(self) -> None:
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
        while (crash := self._next()) is not None:
            try:
                self._work(crash)
            except Exception:
                # The other crashes are waiting.
                logging.getLogger(__name__).exception("What is done about crash %s failed", crash.name)
        lean.give_back()

    def _next(self) -> Crash | None:
        with self._lock:
            self._running = bool(self._waiting)
            return self._waiting.popleft() if self._running else None
