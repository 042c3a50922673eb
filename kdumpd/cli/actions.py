# SPDX-License-Identifier: GPL-2.0-or-later
"""kdumpctl load, unload, reload, rebuild: the service does it, this waits and says how it went."""

from __future__ import annotations

from pathlib import Path

from kdumpd.cli import bus, status
from kdumpd.errors import UsageError


def call(method: str, style: str, root: Path) -> int:
    """Calls `method` of the service, then prints the headline of the state it led to. Raises KdumpError."""
    if root != Path("/"):
        raise UsageError("--root is for looking: a machine below a folder cannot be changed")
    bus.call(method)
    report = status.from_service(bus.properties())
    if style != "off":
        status.print_report(report, style)
    else:
        print(status.headline(report))
    return 0
