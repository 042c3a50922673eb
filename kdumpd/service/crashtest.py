# SPDX-License-Identifier: GPL-2.0-or-later
"""Crashes the machine on request: a tag, the answer to who asked, then the crash, which another process does.

The service itself may not write to /proc/sysrq-trigger. What became of the test is said after the next boot, see
`missed.py`; a test that did not even crash the machine is said at once, and its tag is taken back.
"""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

from kdumpd.errors import BusyError, KdumpError, os_reason
from kdumpd.host.machine import read_machine
from kdumpd.service.journal import Event, Journal
from kdumpd.service.missed import leave_tag, take_tag_back
from kdumpd.service.places import Places

_UNIT = "kdumpd-test-crash.service"
_SECONDS = 90
_PACKAGE_PARENT = Path(__file__).resolve().parents[2]


class CrashTest:
    """`units` says that systemd has the unit kdumpd-test-crash.service; otherwise a child process does it."""

    def __init__(self, places: Places, journal: Journal, *, units: bool) -> None:
        self._places = places
        self._journal = journal
        self._units = units
        self._under_way = threading.Lock()

    def start(self) -> str:
        """The id of the test; the machine is gone a second or a few later.

        Raises BusyError while another test is about to do so, KdumpError when no tag can be left.
        """
        if not self._under_way.acquire(blocking=False):
            raise BusyError("This machine is being crashed already", hint="wait for it")
        try:
            tag_id = leave_tag(self._places.state_dir, read_machine(self._places.root).boot_id)
            self._journal.tell(Event.TEST_CRASH, f"Crashing this machine on request, test {tag_id}", test=tag_id)
            threading.Thread(target=self._crash, args=[tag_id], daemon=True, name="crash-test").start()
        except BaseException as error:
            self._under_way.release()
            if isinstance(error, OSError):
                raise KdumpError(
                    f"This machine is not crashed: the tag of the test cannot be left in {self._places.state_dir}: "
                    f"{os_reason(error)}"
                ) from error
            raise
        return tag_id

    def _crash(self, tag_id: str) -> None:
        """Only where there was no crash, this goes on to its end."""
        try:
            done = subprocess.run(
                self._command(),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=_SECONDS,
                check=False,
                env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8", "PYTHONPATH": str(_PACKAGE_PARENT)},
            )
            said = done.stderr.strip().splitlines()
            why = said[-1].removeprefix("<3>") if said else f"its process ended with status {done.returncode}"
        except (OSError, subprocess.TimeoutExpired) as error:
            why = str(error)
        finally:
            take_tag_back(self._places.state_dir)
            self._under_way.release()
        self._journal.tell(Event.FAULT, f"The test crash {tag_id} did not happen: {why}", test=tag_id)

    def _command(self) -> list[str]:
        if self._units:
            return ["systemctl", "--no-ask-password", "--quiet", "start", _UNIT]
        words = [sys.executable or "/usr/bin/python3", "-m", "kdumpd.loader.crash"]
        return [*words, "--root", str(self._places.root), "--state-dir", str(self._places.state_dir)]
