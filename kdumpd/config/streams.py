# SPDX-License-Identifier: GPL-2.0-or-later
"""The standard streams of a command that was started without them."""

from __future__ import annotations

import contextlib
import os
import sys


def have_streams() -> None:
    """Whoever closed an output (`>&-`) wants the exit status alone. No file opened later takes its place: a dump
    would get the messages. Whether it was closed is still seen in `sys.__stdout__`, which is None then."""
    with contextlib.suppress(OSError):  # where there is no such device they stay closed: a capture is worth more
        while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
            os.set_inheritable(descriptor, True)
        os.close(descriptor)
        # Python has noticed before, and left None.
        for number, name in enumerate(("stdin", "stdout", "stderr")):
            if getattr(sys, name) is None:
                setattr(sys, name, os.fdopen(number, "w" if number else "r", closefd=False))
