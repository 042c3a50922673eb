# SPDX-License-Identifier: GPL-2.0-or-later
"""kdumpctl load, unload, reload, rebuild: the service does it, this waits and says how it went."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from kdumpd.cli import bus, status
from kdumpd.errors import UsageError


def load(options: Namespace) -> int:
    """Manager.Load. Raises KdumpError."""
    return _call("Load", options)


def unload(options: Namespace) -> int:
    """Manager.Unload. Raises KdumpError."""
    return _call("Unload", options)


def reload(options: Namespace) -> int:
    """Manager.Reload. Raises KdumpError."""
    return _call("Reload", options)


def rebuild(options: Namespace) -> int:
    """Manager.Rebuild. Raises KdumpError."""
    return _call("Rebuild", options)


def _call(method: str, options: Namespace) -> int:
    """Calls `method` of the service, then prints the headline of the state it led to."""
    if options.root != Path("/"):
        raise UsageError("--root is for looking: a machine below a folder cannot be changed")
    bus.call(method)
    report = status.from_service(bus.properties())
    if options.json != "off":
        status.print_report(report, options.json)
    else:
        print(status.headline(report))
    return 0
