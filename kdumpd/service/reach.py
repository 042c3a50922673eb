# SPDX-License-Identifier: GPL-2.0-or-later
"""When the targets on the network are tried, and by whom: rarely, and by a process of its own (`trial.py`).

After a start, a load and a change of the settings, after a hint that the network changed, when somebody asks for a
reload, after a failure with growing pauses, and else every six hours. The main loop's tick asks whether it is time;
nothing else wakes the service for this.
"""

from __future__ import annotations

import math
import subprocess
import sys
import threading
import time
from pathlib import Path

from kdumpd.config.model import Config
from kdumpd.config.targets import NfsTarget, SshTarget
from kdumpd.service.journal import Event, Journal
from kdumpd.service.places import Places
from kdumpd.service.tried import FAILED, read_tried

UNIT = "kdumpd-test-target.service"
EVERY_SECONDS = 6 * 3600.0
FIRST_PAUSE_SECONDS, LAST_PAUSE_SECONDS = 60.0, 3600.0
HINT_SECONDS = 10.0  # a network that changes does so in several steps
_TRIAL_SECONDS = 300
_PACKAGE_PARENT = Path(__file__).resolve().parents[2]


class Reach:
    """`note` and `hint` may be called in any thread, `tick` by the main loop: it never waits."""

    def __init__(self, places: Places, journal: Journal, *, units: bool) -> None:
        self._places = places
        self._journal = journal
        self._units = units
        self._lock = threading.Lock()
        self._wanted: tuple[object, ...] = ()
        self._targets: tuple[str, ...] = ()
        self._tried: tuple[object, ...] = ()
        self._due = 0.0
        self._failures = 0
        self._running = False
        self._told = ""

    @property
    def wanted(self) -> bool:
        """True while kdump.conf names a target on the network."""
        return bool(self._targets)

    def note(self, config: Config, image_id: str) -> None:
        """What kdump.conf names now, and the image that is loaded."""
        if config.errors:
            return
        targets = tuple(str(target) for target in config.targets if isinstance(target, NfsTarget | SshTarget))
        with self._lock:
            self._targets = targets
            self._wanted = (targets, config.path, config.sshkey, image_id) if targets else ()

    def hint(self, seconds: float = HINT_SECONDS) -> None:
        """Something happened that may have changed whether a target can be reached; it is tried soon."""
        with self._lock:
            self._due = min(self._due, time.monotonic() + seconds)
            self._failures = 0

    def tick(self) -> None:
        """Starts a trial when it is time."""
        with self._lock:
            fresh = self._wanted == self._tried and time.monotonic() < self._due
            if not self._wanted or self._running or fresh:
                return
            self._running = True
            self._tried = self._wanted
            self._due = math.inf  # a hint that comes during the trial brings it down again, and another one follows
        threading.Thread(target=self._run, name="reach", daemon=True).start()

    def _run(self) -> None:
        """In a thread of its own. The report is seen by the watch on it; here only the next time is chosen."""
        well = False
        try:
            trouble = self._trial()
            if trouble and trouble != self._told:
                self._journal.tell(Event.FAULT, f"The targets on the network could not be tried: {trouble}")
            self._told = trouble
            tried = read_tried(self._places.run_dir, self._targets)
            well = not trouble and all(one.result != FAILED for one in tried)
        finally:
            self._over(well)

    def _over(self, well: bool) -> None:
        """Chooses the next time, whatever became of this one."""
        with self._lock:
            pause = EVERY_SECONDS
            if not well:
                pause = min(FIRST_PAUSE_SECONDS * 2**self._failures, LAST_PAUSE_SECONDS)
                self._failures = min(self._failures + 1, 16)
            else:
                self._failures = 0
            self._due = min(self._due, time.monotonic() + pause)
            self._running = False

    def _trial(self) -> str:
        """Why it was not carried out; empty when it was."""
        try:
            done = subprocess.run(
                self._command(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
                timeout=_TRIAL_SECONDS,
                check=False,
                env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8", "PYTHONPATH": str(_PACKAGE_PARENT)},
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            return str(error)
        if done.returncode == 0:
            return ""
        said = done.stderr.strip().splitlines()
        return said[-1].removeprefix("<3>") if said else f"{UNIT} ended with status {done.returncode}"

    def _command(self) -> list[str]:
        if self._units:
            return ["systemctl", "--no-ask-password", "--quiet", "start", UNIT]
        words = ["setpriv", "--pdeathsig", "TERM", sys.executable or "/usr/bin/python3", "-m", "kdumpd.service.trial"]
        return [*words, "--root", str(self._places.root), "--run-dir", str(self._places.run_dir)]
