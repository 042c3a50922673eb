# SPDX-License-Identifier: GPL-2.0-or-later
"""-R: the flattened stream on standard input becomes the dump that it carries, as far as it came."""

from __future__ import annotations

import os
from pathlib import Path

from kdumpd.collector.progress import size_text
from kdumpd.collector.verbs.console import Console
from kdumpd.collector.verbs.output import Output
from kdumpd.config.core_collector import CollectorOptions
from kdumpd.dumpfile.check import verify_dump
from kdumpd.dumpfile.unflatten import unflatten
from kdumpd.errors import DumpFormatError, TargetError, UsageError, os_reason

_STDIN_FD = 0
_STDIN = "standard input"


def _read(size: int) -> bytes:
    try:
        return os.read(_STDIN_FD, size)
    except OSError as error:
        raise TargetError(f"{_STDIN} cannot be read: {os_reason(error)}") from error


def rearrange(options: CollectorOptions, console: Console) -> int:
    """Writes OUT. What is left of a stream that was cut keeps the name OUT.incomplete, and is an error."""
    if len(options.operands) != 1:
        names = len(options.operands)
        raise UsageError(f"{names} file names were given; OUT is needed", hint="kdumpd-collect -R OUT <STREAM")
    if os.isatty(_STDIN_FD):
        raise UsageError(f"{_STDIN} is a terminal", hint="kdumpd-collect -R OUT <STREAM")
    out = Path(options.operands[0])
    with Output(out, force=options.force) as output:
        received, whole = unflatten(_read, _STDIN, output.file)
        if not whole:
            raise DumpFormatError(
                f"the stream was cut after {received} bytes; {output.partial} holds what came, and says so",
                hint="crash opens it with --zero_excluded, as far as it goes",
            )
        if options.dump.verify:
            verify_dump(output.partial)
    output.commit()
    size = out.stat().st_size
    console.result(f"{out}: {size_text(size)}", {"result": "complete", "out": str(out), "size_bytes": size})
    return 0
