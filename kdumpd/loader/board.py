# SPDX-License-Identifier: GPL-2.0-or-later
"""`kdumpd-load`: loads a capture kernel on a machine that has neither the service nor kexec-tools, but Python.

`kdumpctl build` packs it into one file beside the image. It needs the standard library alone.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from pathlib import Path

from kdumpd.errors import KdumpError, LoadError, os_reason
from kdumpd.host.kexec import FileLoader, read_loaded
from kdumpd.host.kexec_pair import Pair, open_pair
from kdumpd.host.kexec_segments import SegmentLoader
from kdumpd.host.machine import read_machine
from kdumpd.loader.older import Loads, load_first

PROGRAM = "kdumpd-load"


def main(arguments: list[str] | None = None) -> int:
    """Loads or unloads; returns the exit status, 0 when the kernel says that it holds a capture kernel now."""
    options = _parser().parse_args(arguments)
    arch = read_machine().arch
    try:
        if options.unload:
            FileLoader(arch).unload()
        elif None in (options.kernel, options.initrd, options.command_line):
            raise LoadError("kernel, image and command line belong together", hint=f"{PROGRAM} --help")
        else:
            _load(options, arch)
    except KdumpError as error:
        print(f"{PROGRAM}: {error.sentence}", file=sys.stderr)
        if error.hint:
            print(f"  {error.hint}", file=sys.stderr)
        return error.exit_code
    print(f"{PROGRAM}: {'loaded: a crash would be captured' if read_loaded() else 'unloaded'}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=PROGRAM, description="Loads a capture kernel, for the next crash.")
    parser.add_argument("--kernel", type=Path, metavar="FILE", help="the kernel's Image, or a packed one")
    parser.add_argument("--initrd", type=Path, metavar="FILE", help="the capture image")
    parser.add_argument("--command-line", type=Path, metavar="FILE", help="the file that holds the command line")
    parser.add_argument("--dtb", type=Path, metavar="FILE", help="default: the device tree of the running kernel")
    parser.add_argument("--unload", action="store_true", help="take the capture kernel out again")
    return parser


def _load(options: argparse.Namespace, arch: str) -> None:
    pair = Pair(
        kernel=options.kernel,
        initrd=options.initrd,
        initrd_sha256=_digest(options.initrd),
        cmdline=_line(options.command_line),
    )
    # The kernel takes its own device tree in kexec_file_load(2), which is the better one unless somebody names another.
    loaders: list[Loads] = [FileLoader(arch), SegmentLoader(arch, tree=options.dtb)]
    with open_pair(pair) as opened:
        load_first(opened, loaders if options.dtb is None else loaders[::-1])


def _digest(path: Path) -> str:
    """The sum of the image as it is: nobody else on this machine knows what it should be."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise LoadError(f"The image {path} cannot be read: {os_reason(error)}") from error


def _line(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = os_reason(error) if isinstance(error, OSError) else "it is not text"
        raise LoadError(f"The command line {path} cannot be read: {reason}") from error


if __name__ == "__main__":
    sys.exit(main())
