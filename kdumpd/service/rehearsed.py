# SPDX-License-Identifier: GPL-2.0-or-later
"""What the last rehearsal came to: /var/lib/kdumpd/rehearsal.json, written by kdumpctl, read by the service.

It is about one pair of kernel and image; `LastRehearsal.is_of` says whether that is the one that is loaded.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from kdumpd.service.json_file import read_json, write_atomic
from kdumpd.service.model import LastRehearsal

REHEARSAL_NAME = "rehearsal.json"
LOG_NAME = "rehearsal.log"
_TEXTS = ("release", "image_id", "initrd_sha256", "kernel_sha256", "cmdline", "accel", "problem")
_NUMBERS = ("time_usec", "reserved_bytes", "dump_bytes", "lowest_available_bytes")


def write_rehearsal(state_dir: Path, rehearsal: LastRehearsal) -> None:
    """Raises OSError."""
    write_atomic(state_dir / REHEARSAL_NAME, json.dumps(dataclasses.asdict(rehearsal), indent=1) + "\n")


def read_rehearsal(state_dir: Path) -> LastRehearsal | None:
    """The last one; None when there was none, or its record is not one."""
    raw = read_json(state_dir / REHEARSAL_NAME)
    if raw is None:
        return None
    texts = {name: raw.get(name) for name in _TEXTS}
    numbers = {name: raw.get(name) for name in _NUMBERS}
    seconds, exchanged = raw.get("seconds"), raw.get("exchanged")
    good = (
        all(isinstance(text, str) for text in texts.values())
        and all(type(number) is int and 0 <= number < 1 << 63 for number in numbers.values())
        and type(seconds) in (int, float)
        and isinstance(exchanged, list)
        and all(isinstance(text, str) for text in exchanged)
    )
    if not good:
        return None
    return LastRehearsal(**texts, **numbers, seconds=float(seconds), exchanged=tuple(exchanged))  # type: ignore[arg-type]  # looked at above
