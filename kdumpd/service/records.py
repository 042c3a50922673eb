# SPDX-License-Identifier: GPL-2.0-or-later
"""What the service remembers in files: what it loaded in this boot (see load_notes.py), whether it is held, which
crashes it has reported.
"""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

from kdumpd.config.kexec_syscall import KexecSyscall
from kdumpd.service.json_file import read_json, write_atomic
from kdumpd.service.load_notes import LoadNotes
from kdumpd.service.model import Held, LoadedRecord
from kdumpd.service.places import HELD_NAME

SEEN_NAME = "seen.json"
# A load takes a few seconds where the machine is slow; the kernel is empty for a part of them.
_LOAD_SECONDS = 60.0


def parse_loaded(raw: dict[str, Any] | None) -> LoadedRecord | None:
    """A record from its JSON; None for anything incomplete. What later versions added may be absent."""
    if raw is None:
        return None
    fields = [field for field in dataclasses.fields(LoadedRecord) if field.name in raw or _required(field)]
    values: dict[str, Any] = {field.name: raw.get(field.name) for field in fields}
    texts = [value for name, value in values.items() if name != "loaded_usec"]
    if not all(isinstance(value, str) for value in texts) or not isinstance(values["loaded_usec"], int):
        return None
    if values.get("syscall", KexecSyscall.AUTO) not in list(KexecSyscall):
        return None
    return LoadedRecord(**values)


def _required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING


class LoadedFile:
    """The records of the run folder, valid for one boot."""

    def __init__(self, folder: Path, boot_id: str) -> None:
        self._notes = LoadNotes(folder)
        self._boot_id = boot_id

    def read(self) -> LoadedRecord | None:
        """What was loaded in this boot; None when nothing was, or the record is of another boot."""
        record = parse_loaded(read_json(self._notes.loaded))
        return record if record is not None and record.boot_id == self._boot_id else None

    def interrupted(self) -> bool:
        """True when a load of this boot was begun and its end never noted."""
        raw = read_json(self._notes.loading)
        return raw is not None and raw.get("boot_id") == self._boot_id

    def in_progress(self) -> bool:
        """True when a load of this boot was begun a moment ago: a loader outlives the service that asked it."""
        try:
            began = self._notes.loading.stat().st_mtime
        except OSError:
            return False
        return self.interrupted() and abs(time.time() - began) < _LOAD_SECONDS

    def begin(self, record: LoadedRecord) -> None:
        """Notes that `record` is about to be loaded. Raises OSError."""
        self._notes.begin(dataclasses.asdict(record))

    def commit(self, record: LoadedRecord) -> None:
        """Notes that the kernel holds `record`. Raises OSError."""
        self._notes.commit(dataclasses.asdict(record))

    def abandon(self) -> None:
        """The load failed and the kernel still holds what it held."""
        self._notes.abandon()

    def forget(self) -> None:
        """The kernel holds nothing of ours any more."""
        self._notes.loaded.unlink(missing_ok=True)
        self._notes.abandon()


class HoldFile:
    """That nothing is to be loaded, and why, in the run folder: it outlives the service, not the boot."""

    def __init__(self, folder: Path, boot_id: str) -> None:
        self._path = folder / HELD_NAME
        self._boot_id = boot_id

    def read(self) -> Held | None:
        """Why, None when there is no hold."""
        raw = read_json(self._path)
        if raw is None or raw.get("boot_id") != self._boot_id:
            return None
        return Held.OTHER if raw.get("by") == Held.OTHER else Held.REQUEST

    def hold(self, by: Held) -> None:
        """Notes it. Raises OSError."""
        write_atomic(self._path, json.dumps({"boot_id": self._boot_id, "by": by.value}) + "\n")

    def release(self) -> None:
        """The hold is over. Raises OSError."""
        self._path.unlink(missing_ok=True)
