# SPDX-License-Identifier: GPL-2.0-or-later
"""--verify: checks dumps, whoever wrote them."""

from __future__ import annotations

from pathlib import Path

from kdumpd.collector.verbs.console import Console
from kdumpd.config.core_collector import CollectorOptions
from kdumpd.dumpfile.check import verify_dump
from kdumpd.errors import KdumpError, UsageError


def verify(options: CollectorOptions, console: Console) -> int:
    """Checks every DUMP, whatever becomes of the others; raises for the last that failed."""
    if not options.operands:
        raise UsageError("no dump was named", hint="kdumpd-collect --verify DUMP...")
    failed: list[KdumpError] = []
    sound: list[str] = []
    for name in options.operands:
        try:
            verify_dump(Path(name), sample=None)
            sound.append(name)
        except KdumpError as error:
            if failed:
                console.failure(failed[-1], {})
            failed.append(error)
    if failed:
        raise failed[-1]
    console.result("\n".join(f"{name}: sound" for name in sound), {"result": "complete", "sound": sound})
    return 0
