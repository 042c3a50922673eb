# SPDX-License-Identifier: GPL-2.0-or-later
"""`kdumpctl`, also `python3 -m kdumpd.cli`: from the words of a command line to an exit status."""

from __future__ import annotations

import argparse
import importlib
import io
import sys
from pathlib import Path

from kdumpd.cli import failure
from kdumpd.cli.parser import make_parser
from kdumpd.config.streams import have_streams
from kdumpd.errors import UsageError


def main(arguments: list[str] | None = None) -> int:
    """Runs one command; returns the exit status."""
    have_streams()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A panic line or a path that the locale cannot show must not end in an error.
            stream.reconfigure(errors="backslashreplace")
    words = sys.argv[1:] if arguments is None else arguments
    try:
        status = _status(words)
        sys.stdout.flush()
        return status
    except BaseException as error:
        return failure.report(error)


def _status(words: list[str]) -> int:
    """Of the command that `words` are. argparse itself answers to --help and to what is no command."""
    try:
        options = make_parser(words[0] if words else "status").parse_args([_with_style(word) for word in words])
    except SystemExit:
        sys.stdout.flush()  # where a fault can still be told
        raise
    return _run(options)


def _with_style(word: str) -> str:
    """A lone --json must not swallow the word behind it."""
    return "--json=short" if word == "--json" else word


def _run(options: argparse.Namespace) -> int:
    """Calls the function behind the verb with its options; `json` and `root` always among them."""
    values = {"json": "off", "root": Path("/"), "run": "status:show", **vars(options)}
    if not values["root"].is_dir():
        raise UsageError(f"there is no folder {values['root']} to look at")
    module, function = values["run"].split(":")
    status: int = getattr(importlib.import_module(f"kdumpd.cli.{module}"), function)(argparse.Namespace(**values))
    return status


if __name__ == "__main__":
    sys.exit(main())
