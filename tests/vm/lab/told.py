# SPDX-License-Identifier: GPL-2.0-or-later
"""What the capture kernel of a guest is told: the words that the service would choose, asked of kdumpd in a process of
its own. What a capture has of its memory depends on them.
"""

from __future__ import annotations

from pathlib import Path

from .aptroot import run

TOP = Path(__file__).resolve().parents[3]
# Of the kernel's messages those that matter: a line to an emulated console takes a millisecond.
_QUIETER = "loglevel=5"
_ASK = """
import sys
from kdumpd.host.cmdline import Wishes, capture_cmdline
print(capture_cmdline(sys.argv[1], "x86_64", boot_apicid=0, cpus=1, wishes=Wishes(append=sys.argv[2])))
"""


def capture_words(running: str, append: str = "") -> str:
    """The command line for a guest with one processor, whose first kernel was started with `running`; `append` is what
    a test adds to it, as commandline_append does."""
    python = ["/usr/bin/env", "-C", str(TOP), "/usr/bin/python3", "-B"]
    return run([*python, "-c", _ASK, running, f"{_QUIETER} {append}".strip()], timeout=60).strip()
