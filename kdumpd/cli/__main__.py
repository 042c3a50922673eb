# SPDX-License-Identifier: GPL-2.0-or-later
"""`kdumpctl`, also `python3 -m kdumpd.cli`: the command line. Knows words and options; imports what a verb needs late,
so that `status` starts fast.
"""

from __future__ import annotations

import argparse
import io
import sys
from pathlib import Path

import kdumpd
from kdumpd.cli import failure

_ACTIONS = {
    "load": ("Load", "build the capture image if needed, and load it", ["start"]),
    "unload": ("Unload", "unload the capture kernel until `load` is given", ["stop"]),
    "reload": ("Reload", "read kdump.conf again, build if needed, and load again", ["restart"]),
    "rebuild": ("Rebuild", "build the capture image even if it is fresh, and load it", []),
}


def main(arguments: list[str] | None = None) -> int:
    """Runs one command; returns the exit status."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A panic line or a path that the locale cannot show must not end in an error.
            stream.reconfigure(errors="backslashreplace")
    words = sys.argv[1:] if arguments is None else arguments
    options = _parser().parse_args([_with_style(word) for word in words])
    try:
        status = _run(options)
        sys.stdout.flush()
        return status
    except BaseException as error:
        return failure.report(error)


def _with_style(word: str) -> str:
    """A lone --json must not swallow the word behind it."""
    return "--json=short" if word == "--json" else word


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--json",
        choices=("short", "pretty", "off"),
        default=argparse.SUPPRESS,
        help="print JSON on one line (also: --json alone), JSON to read, or text",
    )
    common.add_argument(
        "--root", type=Path, default=argparse.SUPPRESS, metavar="FOLDER", help="look at the machine below FOLDER"
    )
    parser = argparse.ArgumentParser(
        prog="kdumpctl",
        description="Shows whether a crash of this machine would be captured, and the crashes that were.",
        epilog="Without a command: status. See kdumpctl(8).",
        parents=[common],
    )
    parser.add_argument("--version", action="version", version=f"kdumpctl {kdumpd.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    commands.add_parser("status", parents=[common], help="is this machine ready? (exit status 0: yes, 3: no)")
    commands.add_parser("list", parents=[common], help="the crashes that were captured")
    info = commands.add_parser("info", parents=[common], help="all about one crash")
    info.add_argument("crash", nargs="?", default="last", metavar="CRASH", help="number, name or `last` (default)")
    for name, (method, text, aliases) in _ACTIONS.items():
        action = commands.add_parser(name, parents=[common], help=text, aliases=aliases)
        action.set_defaults(method=method)
    return parser


def _run(options: argparse.Namespace) -> int:
    style: str = getattr(options, "json", "off")
    root: Path = getattr(options, "root", Path("/"))
    if "method" in options:
        from kdumpd.cli import actions

        return actions.call(options.method, style, root)
    if options.command in ("list", "info"):
        from kdumpd.cli import crashes

        if options.command == "list":
            return crashes.show_list(root, style)
        return crashes.show_info(root, options.crash, style)
    from kdumpd.cli import status

    return status.show(root, style)


if __name__ == "__main__":
    sys.exit(main())
