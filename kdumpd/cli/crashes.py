# SPDX-License-Identifier: GPL-2.0-or-later
"""kdumpctl list and info: the crashes that were captured, read from their manifests, with or without the service."""

from __future__ import annotations

import dataclasses
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

from kdumpd.cli import output
from kdumpd.config.parse import read_config
from kdumpd.crashes.index import Crash, find_crash
from kdumpd.crashes.place import read_all_crashes
from kdumpd.crashes.text import printable
from kdumpd.crashes.verify import verify

_HEADER = ("#", "TIME", "KERNEL", "RESULT", "SIZE", "TOOK", "PANIC")
_KERNEL_COLUMNS = 22
# Every panic begins so; the rest is what tells them apart.
_PANIC_PREFIX = "Kernel panic - not syncing: "


def show_list(options: Namespace) -> int:
    """Prints the table, newest first; exit status 1 when there is no crash, as coredumpctl(1) does."""
    crashes = _read(options.root)
    if options.json != "off":
        output.print_json([_facts(crash) for crash in reversed(crashes)], options.json)
        return 0
    if not crashes:
        print("No crashes.", file=sys.stderr)
        return 1
    rows = [_row(number, crash) for number, crash in enumerate(reversed(crashes), start=1)]
    for line in output.table(_HEADER, rows, right=("#", "SIZE", "TOOK")):
        print(line)
    if sys.stdout.isatty():
        print(f"\n{len(crashes)} crash{'es' if len(crashes) > 1 else ''} listed.")
    return 0


def show_info(options: Namespace) -> int:
    """Prints all that is known about one crash. Raises NotFoundError."""
    crash = find_crash(_read(options.root), options.crash)
    if options.json != "off":
        output.print_json(_facts(crash), options.json)
        return 0
    output.print_pairs(_pairs(crash))
    return 0


def verify_crash(options: Namespace) -> int:
    """0 when all files are what the collector wrote, 1 when one is not. Raises NotFoundError."""
    crash = find_crash(_read(options.root), options.crash)
    problem = verify(crash)
    if options.json != "off":
        output.print_json({"name": crash.name, "whole": problem is None, "problem": problem}, options.json)
    elif problem is None:
        print(f"{crash.name}: the files are what was written ({crash.standing}).")
    else:
        print(output.wrap(f"{crash.name}: {problem}", 2, begins=0))
    return 0 if problem is None else 1


def _read(root: Path) -> tuple[Crash, ...]:
    return read_all_crashes(read_config(root), root)


def _row(number: int, crash: Crash) -> tuple[str, ...]:
    manifest = crash.manifest
    kernel = manifest.kernel if manifest is not None else "-"
    panic = (manifest.panic if manifest is not None else None) or crash.problem or "-"
    return (
        str(number),
        output.moment(crash.time_usec),
        output.clip(printable(kernel), _KERNEL_COLUMNS),
        crash.standing.value,
        output.size(crash.dump_bytes),
        output.duration(crash.took_usec),
        printable(panic.removeprefix(_PANIC_PREFIX)),
    )


def _pairs(crash: Crash) -> list[tuple[str, str]]:
    """Key and value for each line of `info`, without those that are not known."""
    facts = _facts(crash)
    manifest = crash.manifest
    pairs: list[tuple[str, str | None]] = [
        ("Crash", crash.name),
        ("Result", crash.standing.value),
        ("Problem", crash.problem),
        ("Panic", facts["panic"]),
        ("Time", output.moment(crash.time_usec)),
        ("Took", output.duration(crash.took_usec) if manifest is not None else None),
        ("Host", facts["hostname"]),
        ("Kernel", facts["kernel"]),
        ("Build", manifest.kernel_version if manifest is not None else None),
        ("Machine", manifest.machine if manifest is not None else None),
        ("Dump", _dump_text(crash)),
        ("Encrypted", ", ".join(manifest.encrypted_to) if manifest is not None else None),
        ("Log", str(crash.log) if crash.log is not None else None),
        ("Folder", str(crash.path)),
        ("Also in", ", ".join(map(str, crash.also))),
    ]
    if manifest is not None:
        pairs += [
            ("Level", None if manifest.level is None else f"{manifest.level} ({manifest.compression})"),
            ("Pages", ", ".join(f"{name} {count}" for name, count in manifest.pages.items()) or None),
            ("Peak memory", output.size(manifest.peak_rss_bytes) if manifest.peak_rss_bytes else None),
            ("Image", manifest.image_id),
            ("Captured by", f"kdumpd {manifest.kdumpd_version}"),
            *(("Note", note) for note in manifest.notes),
        ]
    return [(key, str(value)) for key, value in pairs if value]


def _dump_text(crash: Crash) -> str | None:
    if crash.dump_bytes is None:
        return None
    return f"{output.size(crash.dump_bytes)} ({crash.dump_bytes} bytes)"


def _regions(crash: Crash) -> list[dict[str, Any]]:
    """Checksums of the dump, part by part."""
    if crash.manifest is None or crash.manifest.dump is None:
        return []
    return [dataclasses.asdict(region) for region in crash.manifest.dump.regions]


def _facts(crash: Crash) -> dict[str, Any]:
    """One crash as a flat object for --json: bytes and microseconds, null for what is not known."""
    manifest = crash.manifest
    return {
        "name": crash.name,
        "path": str(crash.path),
        "also": [str(path) for path in crash.also],
        "result": crash.standing.value,
        "problem": crash.problem,
        "time_usec": crash.time_usec,
        "took_usec": crash.took_usec,
        "hostname": manifest.hostname if manifest is not None else None,
        "kernel": manifest.kernel if manifest is not None else None,
        "panic": manifest.panic if manifest is not None else None,
        "dump_bytes": crash.dump_bytes,
        "encrypted_to": list(manifest.encrypted_to) if manifest is not None else [],
        "regions": _regions(crash),
        "level": manifest.level if manifest is not None else None,
        "compression": manifest.compression if manifest is not None else None,
        "pages": dict(manifest.pages) if manifest is not None else {},
        "image_id": manifest.image_id if manifest is not None else None,
        "kdumpd_version": manifest.kdumpd_version if manifest is not None else None,
        "notes": list(manifest.notes) if manifest is not None else [],
    }
