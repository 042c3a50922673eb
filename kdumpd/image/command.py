# SPDX-License-Identifier: GPL-2.0-or-later
"""What `python3 -m kdumpd.image` does, once its command line is read (`__main__`)."""

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
from kdumpd.image.pyclosure import Begun
from kdumpd.image.record import ImageRecord
from kdumpd.image.verify import check


def run(options: argparse.Namespace, prepared: Begun | None) -> int:
    """Runs the command of `options`; returns the exit status. `prepared` is the first step of a build."""
    started = time.monotonic()
    report = _reporter(getattr(options, "report", None))
    try:
        if options.command == "stage":
            stage(dataclasses.replace(_request(options), builder=Builder.DRACUT), options.folder)
            return 0
        building = options.command == "build"
        folder: Path = options.output if building else options.folder
        record = build(_request(options), _phases(report), prepared=prepared) if building else check(folder)
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
        output=options.folder if options.command == "stage" else options.output,
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
