# SPDX-License-Identifier: GPL-2.0-or-later
"""Did this machine crash without leaving a dump? Asked once in each boot, when the crash folder can be seen.

Two things show a crash: a tag that `kdumpctl test` left right before it crashed the machine, and records of a panic
in pstore. If either is there and no crash folder is new, the capture failed, and somebody has to know.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterable
from pathlib import Path

from kdumpd.host.machine import now_usec
from kdumpd.host.pstore import PanicRecord
from kdumpd.service.records import read_json, write_atomic

TAG_NAME = "tag.json"
_ANSWER_NAME = "missed.json"


def leave_tag(state_dir: Path, boot_id: str) -> None:
    """Notes that this boot is about to be crashed on purpose. Raises OSError."""
    text = json.dumps({"boot_id": boot_id, "time_usec": now_usec()}, indent=1) + "\n"
    write_atomic(state_dir / TAG_NAME, text)


def evidence(state_dir: Path, boot_id: str, panics: Iterable[PanicRecord], seen: frozenset[str]) -> str:
    """What shows that an earlier boot crashed, half a sentence; empty for nothing. `seen` are keys of old records."""
    tag = read_json(state_dir / TAG_NAME)
    if tag is not None and tag.get("boot_id") != boot_id:
        return f"it was crashed on purpose {_at(tag.get('time_usec'))}"
    fresh = [record for record in panics if record.key not in seen]
    return f"{fresh[-1].path} holds a panic {_at(fresh[-1].time_usec)}" if fresh else ""


def forget_tag(state_dir: Path, boot_id: str) -> None:
    """The tag of an earlier boot has been looked at; one of this boot stays."""
    tag = read_json(state_dir / TAG_NAME)
    if tag is None or tag.get("boot_id") != boot_id:
        with contextlib.suppress(OSError):
            (state_dir / TAG_NAME).unlink(missing_ok=True)


class Answer:
    """The answer of this boot, in the run folder: a service that is started again does not ask again."""

    def __init__(self, run_dir: Path, boot_id: str) -> None:
        self._path = run_dir / _ANSWER_NAME
        self._boot_id = boot_id

    def read(self) -> str | None:
        """What shows the crash that left no dump; empty when all is well, None while nobody asked in this boot."""
        raw = read_json(self._path)
        if raw is None or raw.get("boot_id") != self._boot_id:
            return None
        missed = raw.get("missed")
        return missed if isinstance(missed, str) else None

    def write(self, missed: str) -> None:
        """Keeps the answer; where it cannot be kept, the question is asked again at the next start."""
        with contextlib.suppress(OSError):
            write_atomic(self._path, json.dumps({"boot_id": self._boot_id, "missed": missed}, indent=1) + "\n")


def _at(usec: object) -> str:
    if not isinstance(usec, int):
        return "at an unknown time"
    try:
        return time.strftime("at %Y-%m-%d %H:%M:%S UTC", time.gmtime(usec / 1e6))
    except (ValueError, OverflowError, OSError):
        return "at an unknown time"
