# SPDX-License-Identifier: GPL-2.0-or-later
"""`python3 -m kdumpd.image build|check|stage`: builds or checks a capture image in a process of its own.

The service runs it in a process of its own, so that the memory of a build is given back and a build can be stopped.
With --json the result is one line on standard output; an error is one sentence on standard error. --report keeps a
file that says how far the build is and how it ended. `stage` is for the module of dracut(8).
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kdumpd.config import Config, parse_config, read_config
from kdumpd.config.model import Builder
from kdumpd.errors import BuildError, ConfigError, KdumpError, os_reason
from kdumpd.host.kernels import find_kernel
from kdumpd.host.mounts import resolve_targets
from kdumpd.image.builder import BuildRequest, Progress, build, stage
from kdumpd.image.capture import capture_config
from kdumpd.image.network import with_network
from kdumpd.image.record import ImageRecord
from kdumpd.image.verify import check

STATE_DIR = "var/lib/kdumpd"


def main(arguments: list[str] | None = None) -> int:
    """Runs one command; returns the exit status."""
    options = _parser().parse_args(arguments)
    started = time.monotonic()
    report = _reporter(getattr(options, "report", None))
    try:
        if options.command == "stage":
            stage(dataclasses.replace(_request(options), builder=Builder.DRACUT), options.folder)
            return 0
        record = build(_request(options), _phases(report)) if options.command == "build" else check(options.folder)
        folder = _output(options) if options.command == "build" else options.folder
        facts = _facts(record, folder, time.monotonic() - started)
        report({"result": facts})
    except OSError as error:
        # A file that vanished or a disk that failed between two looks at it.
        failed: KdumpError = BuildError(f"{error.filename or 'the build'}: {os_reason(error)}")
    except KdumpError as error:
        failed = error
    else:
        _show(record, facts, as_json=options.json)
        return 0
    print(f"kdumpd.image: {failed}", file=sys.stderr)
    with contextlib.suppress(OSError):
        report({"error": {"sentence": failed.sentence, "hint": failed.hint}})
    return failed.exit_code


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


def _reporter(path: Path | None) -> Callable[[dict[str, Any]], None]:
    """What writes a report to `path`: each time the whole file, in one rename. Raises OSError."""

    def write(facts: dict[str, Any]) -> None:
        if path is not None:
            temporary = path.with_name(f".{path.name}.new")
            handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            with open(handle, "w", encoding="utf-8") as file:
                json.dump(facts, file)
            temporary.rename(path)

    return write


def _phases(report: Callable[[dict[str, Any]], None]) -> Progress:
    return lambda phase, fraction: report({"phase": phase, "progress": fraction})


def _request(options: argparse.Namespace) -> BuildRequest:
    config = _config(options)
    if config.errors:
        raise ConfigError(str(config.errors[0]), hint="correct it, then try again")
    kernel = find_kernel(options.kernel, options.root)
    resolved = resolve_targets(config, options.root)
    notes: list[str] = []
    capture = capture_config(config, resolved, os.uname().nodename, kernel.release, options.root)
    return BuildRequest(
        capture=with_network(capture, options.root, notes),
        kernel=kernel,
        targets=resolved,
        output=options.folder if options.command == "stage" else _output(options),
        root=options.root,
        notes=tuple(notes),
        builder=config.builder,
        builder_args=config.builder_args,
    )


def _facts(record: ImageRecord, folder: Path, seconds: float) -> dict[str, Any]:
    return {
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


def _show(record: ImageRecord, facts: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(facts))
        return
    print(f"{facts['path']}: image {record.image_id[:12]} for kernel {record.kernel} is whole")
    print(
        f"  {record.unpacked_bytes / 1e6:.1f} MB, {record.packed_bytes / 1e6:.1f} MB packed ({record.compression}), "
        f"{len(record.files)} entries, {len(record.modules)} kernel modules, {facts['seconds']:.1f} s"
    )
    for note in record.notes:
        print(f"  {note}")


if __name__ == "__main__":
    sys.exit(main())
