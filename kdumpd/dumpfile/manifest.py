# SPDX-License-Identifier: GPL-2.0-or-later
"""manifest.json, the last file written beside a dump: what was saved, when, by what, and with what result.

It is the truth about a crash directory. The collector writes it, everything else reads it. A directory
without one holds a capture that never ended; a dump is complete only when the manifest says so *and* the
file has its final name and the size given here. docs/FORMATS.md describes each key.
"""

from __future__ import annotations

import dataclasses
import enum
import json
from collections.abc import Mapping
from typing import Any

from kdumpd.errors import DumpFormatError

MANIFEST_NAME = "manifest.json"
DUMP_NAME = "vmcore"
INCOMPLETE_NAME = "vmcore.incomplete"
LOG_NAME = "vmcore-dmesg.txt"
KEXEC_LOG_NAME = "kexec-dmesg.log"
ENCRYPTED_SUFFIX = ".age"
FORMAT = 1
INTERNAL_FAULT = "internal fault"


class Result(enum.StrEnum):
    """How a capture ended."""

    COMPLETE = "complete"
    INCOMPLETE = "incomplete"  # vmcore.incomplete holds what was written before `reason`
    LOG_ONLY = "log-only"  # no page was saved, the kernel log was
    FAILED = "failed"  # nothing of use was saved


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Region:
    """A part of a file and the checksum of its bytes."""

    offset: int
    size_bytes: int
    sha256: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FileRecord:
    """One file of the crash directory.

    A dump is not written from front to back, so it has no single checksum but one per region; the regions follow
    each other and cover the file.
    """

    name: str
    size_bytes: int
    sha256: str | None = None
    regions: tuple[Region, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class Step:
    """Something that was done otherwise than asked for, and the reason, a sentence."""

    step: str
    reason: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """See the module. Times are microseconds of CLOCK_REALTIME, sizes bytes, counts pages, of `page_size_bytes` each.

    `encrypted_to` are the public keys (age) for which the files were encrypted; none when they were not.
    """

    result: Result
    reason: str | None = None
    hostname: str
    kernel: str
    kernel_version: str = ""
    machine: str = ""
    panic: str | None = None
    crash_time_usec: int | None = None
    started_usec: int
    finished_usec: int
    kdumpd_version: str
    image_id: str | None = None
    level: int | None = None
    compression: str | None = None
    compression_level: int | None = None
    dump: FileRecord | None = None
    log: FileRecord | None = None
    encrypted_to: tuple[str, ...] = ()
    pages: Mapping[str, int] = dataclasses.field(default_factory=dict)
    page_size_bytes: int = 4096
    peak_rss_bytes: int | None = None
    lowest_available_bytes: int | None = None
    timings_sec: Mapping[str, float] = dataclasses.field(default_factory=dict)
    steps: tuple[Step, ...] = ()
    notes: tuple[str, ...] = ()

    def to_json(self) -> str:
        """The text of manifest.json."""
        return json.dumps({"format": FORMAT, **dataclasses.asdict(self)}, indent=1) + "\n"

    def without_memory(self) -> Manifest:
        """What may be read by everybody where the dump may not: no words that could have come out of the memory."""
        hidden = f"see {MANIFEST_NAME}{ENCRYPTED_SUFFIX}"
        reason = self.reason
        if reason is not None and reason.startswith(INTERNAL_FAULT):
            reason = f"{INTERNAL_FAULT}, {hidden}"  # a fault shows the value that it stumbled over
        return dataclasses.replace(
            self,
            reason=reason,
            panic=None,
            steps=tuple(Step(step.step, hidden) for step in self.steps),
            notes=(f"{len(self.notes)} notes are in {MANIFEST_NAME}{ENCRYPTED_SUFFIX}",) if self.notes else (),
        )

    @classmethod
    def from_json(cls, text: str, source: str) -> Manifest:
        """Reads what `to_json` wrote. Unknown keys are left alone: a later kdumpd may have added them.

        Raises DumpFormatError naming `source` when a needed key is missing or of another kind.
        """
        try:
            raw: dict[str, Any] = json.loads(text)
            if raw["format"] != FORMAT:
                raise ValueError(f"format {raw['format']!r}, this kdumpd reads {FORMAT}")
            known = {field.name: raw[field.name] for field in dataclasses.fields(cls) if field.name in raw}
            known["result"] = Result(known["result"])
            for name in ("dump", "log"):
                record = known.get(name)
                known[name] = None if record is None else _file_record(record)
            known["notes"] = tuple(str(note) for note in known.get("notes", ()))
            known["encrypted_to"] = tuple(str(key) for key in known.get("encrypted_to", ()))
            known["pages"] = {str(key): int(value) for key, value in known.get("pages", {}).items()}
            known["timings_sec"] = {str(key): float(value) for key, value in known.get("timings_sec", {}).items()}
            known["steps"] = tuple(Step(str(each["step"]), str(each["reason"])) for each in known.get("steps", ()))
            manifest = cls(**known)
            for name in ("started_usec", "finished_usec"):
                if not isinstance(getattr(manifest, name), int):
                    raise TypeError(f"{name} is not a number")
            for name in ("hostname", "kernel", "kdumpd_version"):
                if not isinstance(getattr(manifest, name), str):
                    raise TypeError(f"{name} is not text")
            return manifest
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DumpFormatError(f"{source}: not a manifest of kdumpd: {error}") from error


def _file_record(raw: dict[str, Any]) -> FileRecord:
    digest = raw.get("sha256")
    regions = tuple(
        Region(offset=int(each["offset"]), size_bytes=int(each["size_bytes"]), sha256=str(each["sha256"]))
        for each in raw.get("regions", ())
    )
    return FileRecord(
        name=str(raw["name"]),
        size_bytes=int(raw["size_bytes"]),
        sha256=None if digest is None else str(digest),
        regions=regions,
    )
