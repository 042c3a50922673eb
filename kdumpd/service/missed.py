# SPDX-License-Identifier: GPL-2.0-or-later
"""Did this machine crash without leaving a dump? Asked once in each boot, when the crash folder can be seen.

What became of a crash on purpose is kept until the next one: test.json in the state folder.

Two things show a crash: a tag that `kdumpctl test` left right before it crashed the machine, and records of a panic
in pstore. If either is there and no crash folder is new, the capture failed, and somebody has to know.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from kdumpd.crashes.index import Crash
from kdumpd.host.machine import now_usec
from kdumpd.host.pstore import PanicRecord
from kdumpd.loader.crash import TAG_NAME, log_line
from kdumpd.service.json_file import read_json, write_atomic
from kdumpd.service.model import LastTest

TEST_NAME = "test.json"
MISSING = "missing"
_ANSWER_NAME = "missed.json"
_PIECE_BYTES = 64 << 10
_LOG_BYTES = 64 << 20  # a kernel log is a few MB at most; a file that is more is no log


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Tag:
    """A boot was about to be crashed on purpose. `id` is in its kernel log, see `loader.crash`."""

    id: str
    boot_id: str
    time_usec: int


def leave_tag(state_dir: Path, boot_id: str) -> str:
    """Notes that this boot is about to be crashed on purpose; the id of the test. Raises OSError."""
    tag = Tag(id=os.urandom(8).hex(), boot_id=boot_id, time_usec=now_usec())
    write_atomic(state_dir / TAG_NAME, json.dumps(dataclasses.asdict(tag), indent=1) + "\n")
    return tag.id


def take_tag_back(state_dir: Path) -> None:
    """There was no crash after all. Where that cannot be noted, the next boot misses a dump that never was."""
    with contextlib.suppress(OSError):
        (state_dir / TAG_NAME).unlink(missing_ok=True)


def read_tag(state_dir: Path, boot_id: str) -> Tag | None:
    """The tag that an earlier boot than `boot_id` left; None when there is none, or it says nothing."""
    raw = read_json(state_dir / TAG_NAME)
    if raw is None or raw.get("boot_id") == boot_id:
        return None
    left, words = raw.get("time_usec"), [raw.get(name) for name in ("id", "boot_id")]
    if not isinstance(left, int) or not all(isinstance(word, str) for word in words):
        return None
    return Tag(id=str(words[0]), boot_id=str(words[1]), time_usec=left)


def crash_of(tag: Tag, fresh: Sequence[Crash], *, late: bool = False) -> Crash | None:
    """The crash that `tag` announced, among those that came since, oldest first: the log names the test.

    Where no log does (it was not saved, or is encrypted), it is the newest of them, unless they come so `late` that
    others may have crashed the machine since.
    """
    words = log_line(tag.id).encode()
    for crash in fresh:
        if crash.log is not None:
            with contextlib.suppress(OSError):
                if _holds(crash.log, words):
                    return crash
    return fresh[-1] if fresh and not late else None


def _holds(path: Path, words: bytes) -> bool:
    """Whether `words` are in the file, which is never in memory as a whole. Raises OSError."""
    end = b""
    with path.open("rb") as file:
        for _ in range(_LOG_BYTES // _PIECE_BYTES):
            piece = file.read(_PIECE_BYTES)
            if not piece:
                break
            if words in end + piece:
                return True
            end = (end + piece)[-len(words) :]
    return False


def note_test(state_dir: Path, tag: Tag, crash: Crash | None) -> LastTest:
    """Keeps what became of the test. Where it cannot be kept, only the journal tells."""
    test = LastTest(
        id=tag.id,
        time_usec=tag.time_usec,
        outcome=MISSING if crash is None else crash.standing.value,
        crash="" if crash is None else crash.name,
    )
    with contextlib.suppress(OSError):
        write_atomic(state_dir / TEST_NAME, json.dumps(dataclasses.asdict(test), indent=1) + "\n")
    return test


def read_test(state_dir: Path) -> LastTest | None:
    """What became of the last test; None when there was none."""
    raw = read_json(state_dir / TEST_NAME) or {}
    left, words = raw.get("time_usec"), [raw.get(name) for name in ("id", "outcome", "crash")]
    if not isinstance(left, int) or not all(isinstance(word, str) for word in words):
        return None
    return LastTest(id=str(words[0]), time_usec=left, outcome=str(words[1]), crash=str(words[2]))


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
