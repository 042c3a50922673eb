# SPDX-License-Identifier: GPL-2.0-or-later
"""`python3 -m kdumpd.image build|check|stage`: builds or checks a capture image in a process of its own.

The service runs it in a process of its own, so that the memory of a build is given back and a build can be stopped.
With --json the result is one line on standard output; an error is one sentence on standard error. --report keeps a
file that says how far the build is and how it ended. `stage` is for the module of dracut(8).
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from pathlib import Path

from kdumpd.errors import BuildError
from kdumpd.image import pyclosure

STATE_DIR = "var/lib/kdumpd"


def main(arguments: list[str] | None = None) -> int:
    """Runs one command; returns the exit status."""
    options = _parser().parse_args(arguments)
    if options.command == "build" and options.output is None:
        options.output = options.root / STATE_DIR / options.kernel
    with contextlib.ExitStack() as stack:
        prepared = _prepared(options)
        if prepared is not None:
            stack.enter_context(prepared.probe)
        # What builds takes as long to be imported as what was just begun, which another processor does meanwhile.
        from kdumpd.image.command import run

        return run(options, prepared)


def _prepared(options: argparse.Namespace) -> pyclosure.Begun | None:
    """The first step of a build, where no image is there from which it could take that."""
    if options.command != "build":
        return None
    try:
        return None if any(options.output.parent.glob("*/image.json")) else pyclosure.start()
    except (BuildError, OSError):
        return None  # the build comes upon it, too, and says so


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python3 -m kdumpd.image", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    making = commands.add_parser("build", help="build the capture image of a kernel")
    making.add_argument("--output", type=Path, metavar="FOLDER", help="default: /var/lib/kdumpd/RELEASE")
    making.add_argument("--report", type=Path, metavar="FILE", help="keep the progress and the outcome there, as JSON")
    staging = commands.add_parser("stage", help="write what another tool has to put into its image")
    staging.add_argument("folder", type=Path)
    for command in (making, staging):
        command.add_argument("--kernel", default=os.uname().release, metavar="RELEASE", help="default: the running one")
        command.add_argument("--config", type=Path, metavar="FILE", help="this file alone instead of /etc/kdump.conf")
        command.add_argument(
            "--root",
            type=Path,
            default=Path("/"),
            metavar="FOLDER",
            help="read configuration, kernel and sysfs below it",
        )
    checking = commands.add_parser("check", help="check a capture image against its record")
    checking.add_argument("folder", type=Path)
    for command in (making, checking):
        command.add_argument("--json", action="store_true", help="one line of JSON")
    return parser


if __name__ == "__main__":
    sys.exit(main())
