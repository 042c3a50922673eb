# SPDX-License-Identifier: GPL-2.0-or-later
"""Dumps that lie on raw devices: noticed, and copied to `path` by a process of its own (crashes.recover)."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from kdumpd.config.model import Config
from kdumpd.config.targets import RawTarget
from kdumpd.service.journal import Event, Journal
from kdumpd.service.places import Places

UNIT = "kdumpd-recover.service"
_PACKAGE_PARENT = Path(__file__).resolve().parents[2]


class Recovery:
    """`changed` is called, in a thread of its own, when a copy has ended, well or not.

    What could not be copied is tried again when something else lies there, or by a person; see the unit's journal.
    """

    def __init__(self, places: Places, journal: Journal, changed: Callable[[], None], *, units: bool) -> None:
        self._places = places
        self._journal = journal
        self._changed = changed
        self._units = units
        self._tried: tuple[str, ...] = ()
        self.running = False

    def look(self, config: Config) -> tuple[str, ...]:
        """The crashes that wait on raw devices, as "NAME on DEVICE". Starts to copy those that are new."""
        if not any(isinstance(target, RawTarget) for target in config.targets):
            return ()
        from kdumpd.crashes.recover import raw_devices, waiting  # for the machines that have such a target

        devices = raw_devices(config, self._places.root)
        found = tuple(f"{name} on /dev/{device.name}" for device in devices for name in waiting(device))
        if found and found != self._tried and not self.running:
            self._tried = found
            self.running = True
            threading.Thread(target=self._copy, name="recovery", daemon=True).start()
        return found

    def _copy(self) -> None:
        words = [sys.executable or "/usr/bin/python3", "-m", "kdumpd.crashes.recover", "--root", str(self._places.root)]
        if self._units:
            words = ["systemctl", "--no-ask-password", "--quiet", "start", UNIT]
        environ = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C", "PYTHONPATH": str(_PACKAGE_PARENT)}
        try:
            with contextlib.suppress(OSError):
                if subprocess.run(words, stdin=subprocess.DEVNULL, env=environ, check=False).returncode == 0:
                    return
            sentence = (
                f"Dumps could not be copied from raw devices: {', '.join(self._tried)}; see: journalctl -u {UNIT}"
            )
            self._journal.tell(Event.FAULT, sentence)
        finally:
            self.running = False
            self._changed()
