# SPDX-License-Identifier: GPL-2.0-or-later
"""The one place that turns an error into a sentence for a person, and into an exit status."""

from __future__ import annotations

import contextlib
import os
import sys

from kdumpd.crashes.text import printable
from kdumpd.errors import KdumpError, os_reason

EXIT_FAILURE = 1
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells have it
_TRACE = "KDUMPCTL_TRACE"


def report(error: BaseException) -> int:
    """Prints `error` on standard error; returns the exit status. Only SystemExit is raised again."""
    if isinstance(error, SystemExit):
        raise error
    if isinstance(error, KeyboardInterrupt):
        return EXIT_INTERRUPTED
    if isinstance(error, BrokenPipeError):  # the reader of our output left, which is his right
        _let_go_of_output()
        return EXIT_FAILURE
    if os.environ.get(_TRACE):
        raise error
    with contextlib.suppress(OSError):
        for line in sentences(error):
            print(line, file=sys.stderr)
    _let_go_of_output()
    return error.exit_code if isinstance(error, KdumpError) else EXIT_FAILURE


def _let_go_of_output() -> None:
    """What cannot be printed is not tried once more as Python ends, which would complain and end with 120."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def sentences(error: BaseException) -> list[str]:
    """The lines for `error`: what happened, then what mends it."""
    if isinstance(error, KdumpError):
        lines = [f"kdumpctl: {printable(error.sentence)}"]
        return [*lines, f"  {printable(error.hint)}"] if error.hint else lines
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename is not None else ""
        return [f"kdumpctl: {printable(where + os_reason(error))}"]
    return [
        f"kdumpctl: a fault in kdumpctl itself: {type(error).__name__}: {printable(str(error))}",
        f"  please report it, with the output of: {_TRACE}=1 kdumpctl ...",
    ]
