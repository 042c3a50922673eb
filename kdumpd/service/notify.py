# SPDX-License-Identifier: GPL-2.0-or-later
"""sd_notify(3) and the watchdog interval. Does nothing where no service manager listens."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping

from systemd import daemon


def ready(status: str) -> None:
    """The service answers on the bus and knows its first state."""
    daemon.notify(f"READY=1\nSTATUS={status}")


def extend(seconds: float) -> None:
    """The start goes on, for so long at least: the service manager is not to end it meanwhile."""
    daemon.notify(f"EXTEND_TIMEOUT_USEC={int(seconds * 1e6)}")


def status(line: str) -> None:
    """The line `systemctl status` shows."""
    daemon.notify(f"STATUS={line}")


def reloading() -> None:
    """The configuration is about to be read again; `ready` ends it. The time is needed by Type=notify-reload."""
    daemon.notify(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")


def stopping() -> None:
    """The service goes; the capture kernel stays."""
    daemon.notify("STOPPING=1")


def watchdog() -> None:
    """The main loop is alive."""
    daemon.notify("WATCHDOG=1")


def watchdog_usec(environ: Mapping[str, str] = os.environ) -> int | None:
    """Half of the interval in which the service manager wants to hear from this process, in microseconds.

    systemd-python has no sd_watchdog_enabled(3), so the variables are read here.
    """
    pid = environ.get("WATCHDOG_PID")
    interval = environ.get("WATCHDOG_USEC", "")
    if pid is not None and pid != str(os.getpid()):
        return None
    return int(interval) // 2 if interval.isdigit() and int(interval) > 0 else None
