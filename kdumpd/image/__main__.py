# SPDX-License-Identifier: GPL-2.0-or-later
"""`python3 -m kdumpd.image build|check`: builds or checks a capture image in a process of its own.

The service runs it as a child, so that the memory of a build is given back and a build can be stopped. With
--json the result is one line on standard output; an error is one sentence on standard error.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path

from kdumpd.config import Config, parse_config, read_config
from kdumpd.errors import BuildError, ConfigError, KdumpError, os_reason
from kdumpd.host.kernels import find_kernel
from kdumpd.host.mounts import resolve_target
from kdumpd.image.builder import BuildRequest, build
from kdumpd.image.capture import capture_config
from kdumpd.image.record import ImageRecord
from kdumpd.image.verify import check

STATE_DIR = "var/lib/kdumpd"


def main(arguments: list[str] | None = None) -> int:
    """Runs one command; returns the exit status."""
    options = _parser().parse_args(arguments)
    started = time.monotonic()
    try:
        record = _build(options) if options.command == "build" else check(options.folder)
    except OSError as error:
        # A file that vanished or a disk that failed between two looks at it.
        print(f"kdumpd.image: {error.filename or 'the build'}: {os_reason(error)}", file=sys.stderr)
        return BuildError.exit_code
    except KdumpError as error:
        print(f"kdumpd.image: {error}", file=sys.stderr)
        return error.exit_code
    folder = _output(options) if options.command == "build" else options.folder
    _show(record, folder, time.monotonic() - started, as_json=options.json)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python3 -m kdumpd.image", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    making = commands.add_parser("build", help="build the capture image of a kernel")
    making.add_argument("--kernel", default=os.uname().release, metavar="RELEASE", help="default: the running one")
    making.add_argument("--config", type=Path, metavar="FILE", help="this file alone instead of /etc/kdump.conf")
    making.add_argument("--output", type=Path, metavar="FOLDER", help="default: /var/lib/kdumpd/RELEASE")
    making.add_argument(
        "--root", type=Path, default=Path("/"), metavar="FOLDER", help="read configuration, kernel and sysfs below it"
    )
    checking = commands.add_parser("check", help="check a capture image against its record")
    checking.add_argument("folder", type=Path)
    for command in (making, checking):
        command.add_argument("--json", action="store_true", help="one line of JSON")
    return parser


def _output(options: argparse.Namespace) -> Path:
    output: Path | None = options.output
    return options.root / STATE_DIR / options.kernel if output is None else output


def _config(options: argparse.Namespace) -> Config:
    if options.config is None:
        return read_config(options.root)
    try:
        text = options.config.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = os_reason(error) if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigError(f"{options.config}:0: cannot be read: {reason}") from error
    return parse_config([(str(options.config), text)])


def _build(options: argparse.Namespace) -> ImageRecord:
    config = _config(options)
    if config.errors:
        raise ConfigError(str(config.errors[0]), hint="correct it, then try again")
    kernel = find_kernel(options.kernel, options.root)
    resolved = resolve_target(config, options.root)
    return build(
        BuildRequest(
            capture=capture_config(config, resolved, os.uname().nodename, kernel.release),
            kernel=kernel,
            block=resolved.block,
            output=_output(options),
            root=options.root,
        )
    )


def _show(record: ImageRecord, folder: Path, seconds: float, *, as_json: bool) -> None:
    if as_json:
        facts = {
            "path": str(folder),
            "image_id": record.image_id,
            "kernel": record.kernel,
            "compression": record.compression,
            "packed_bytes": record.packed_bytes,
            "unpacked_bytes": record.unpacked_bytes,
            "modules": len(record.modules),
            "notes": record.notes,
            "seconds": round(seconds, 2),
        }
        print(json.dumps(facts))
        return
    print(f"{folder}: image {record.image_id[:12]} for kernel {record.kernel} is whole")
    print(
        f"  {record.unpacked_bytes / 1e6:.1f} MB, {record.packed_bytes / 1e6:.1f} MB packed ({record.compression}), "
        f"{len(record.files)} entries, {len(record.modules)} kernel modules, {seconds:.1f} s"
    )
    for note in record.notes:
        print(f"  {note}")


if __name__ == "__main__":
    sys.exit(main())
