# SPDX-License-Identifier: GPL-2.0-or-later
"""kdumpctl watch: one line for each change of the state, as the service tells of it on D-Bus."""

from __future__ import annotations

import json
import sys
import time
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdumpd.cli import failure, output, status
from kdumpd.errors import KdumpError, UsageError


def follow(options: Namespace) -> int:
    """Prints until it is interrupted. Without a service it shows the machine as it is now, and waits for one."""
    if options.root != Path("/"):
        raise UsageError("--root is for looking once: there are no signals from a machine below a folder")
    from kdumpd.cli import bus

    printer = _Printer(options.json)
    bus.follow(printer.state, printer.event, printer.gone)
    return 0


class _Printer:
    """Remembers what it printed last, so that only changes are printed."""

    def __init__(self, style: str) -> None:
        self._style = style
        self._last = ""

    def state(self, properties: Mapping[str, Any]) -> None:
        """The properties of the service, whenever one changed."""
        self._print(status.from_service(properties))

    def event(self, name: str, words: list[str]) -> None:
        """A signal of the service, such as CrashAdded."""
        text = f"{name} {' '.join(words)}".rstrip()
        self._line({"event": name, "words": words}, text)

    def gone(self) -> None:
        """The service is not there: once what the machine itself says, then silence until it comes."""
        print("kdumpctl: the service kdumpd does not run; waiting for it", file=sys.stderr, flush=True)
        try:
            self._print(status.read_machine())
        except KdumpError as error:  # who is not root waits without having seen anything
            failure.report(error)

    def _print(self, report: status.Report) -> None:
        line = status.summary(report)
        if line != self._last:
            self._last = line
            self._line({"event": "state", **report.fields, "service": report.service}, line)

    def _line(self, facts: Mapping[str, Any], text: str) -> None:
        if self._style == "off":
            stamp = time.strftime("%H:%M:%S")
            print(f"{stamp} {output.wrap(text, 9, begins=9)}", flush=True)
        else:
            print(json.dumps({**facts, "time_usec": time.time_ns() // 1000}), flush=True)
