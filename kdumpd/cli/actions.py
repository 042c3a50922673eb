# SPDX-License-Identifier: GPL-2.0-or-later
"""kdumpctl load, unload, reload, rebuild: the service does it, this shows how far it is and says how it went."""

from __future__ import annotations

import sys
from argparse import Namespace
from pathlib import Path

from kdumpd.cli import bus, output, status
from kdumpd.errors import UsageError


def run(options: Namespace) -> int:
    """Has the service do what the verb says, then prints the headline of the state it led to. Raises KdumpError."""
    if options.root != Path("/"):
        raise UsageError("--root is for looking: a machine below a folder cannot be changed")
    line = _ProgressLine()
    try:
        bus.run_job(options.verb, line.show)
    finally:
        line.clear()
    report = status.from_service(bus.properties())
    if options.json != "off":
        status.print_report(report, options.json)
    else:
        print(status.headline(report))
    return 0


class _ProgressLine:
    """One line on the terminal that is written over again and again; nothing where there is no terminal."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()

    def show(self, phase: str, progress: float) -> None:
        """What is done now, and how far it is."""
        if self._terminal and phase:
            text = f"{phase} {progress * 100:.0f} %" if progress else f"{phase} ..."
            print(f"\r{output.clip(text, output.width() - 1)}\x1b[K", end="", file=sys.stderr, flush=True)

    def clear(self) -> None:
        """Leaves an empty line for what comes next."""
        if self._terminal:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
