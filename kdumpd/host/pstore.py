# SPDX-License-Identifier: GPL-2.0-or-later
"""Panics that the firmware or reserved memory kept for us (pstore), also after systemd-pstore(8) put them away.

Documentation/admin-guide/ramoops.rst; fs/pstore/platform.c writes "Panic#1 Part1" as the first line of a record. Knows
nothing of dumps.
"""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

from kdumpd.host.files import below

_LIVE = "/sys/fs/pstore"
_ARCHIVE = "/var/lib/systemd/pstore"
_HEAD_BYTES = 64
_LIMIT = 512  # records that are looked at; a full pstore holds some dozens


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PanicRecord:
    """A part of the log of a panic. `key` names it for good: records are renumbered, but keep their times."""

    key: str
    path: Path
    time_usec: int


def read_panics(root: Path = Path("/")) -> tuple[PanicRecord, ...]:
    """The records of panics, oldest first; oopses that the machine survived are left out. Never raises."""
    live, archive = below(root, _LIVE), below(root, _ARCHIVE)
    found: dict[str, PanicRecord] = {}
    for path in itertools.islice(itertools.chain(live.glob("dmesg-*"), archive.glob("**/dmesg-*")), _LIMIT):
        try:
            with open(path, "rb") as file:
                head = file.read(_HEAD_BYTES)
            if head.startswith(b"Panic#"):
                time_usec = path.stat().st_mtime_ns // 1000
                key = f"{head.split(None, 2)[1].decode(errors='replace')}@{time_usec // 1_000_000}"
                found.setdefault(key, PanicRecord(key=key, path=path, time_usec=time_usec))
        except (OSError, IndexError):
            continue
    return tuple(sorted(found.values(), key=lambda record: record.time_usec))
