# SPDX-License-Identifier: GPL-2.0-or-later
"""Notices crashes that arrived since the last look, and says each one once in the journal.

The crash folder is read again only when it changed. What was reported is remembered by name, not by time: the clock
of a capture kernel may stand in 1970.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable
from pathlib import Path

from kdumpd.config.model import Config
from kdumpd.crashes.index import Crash, Standing
from kdumpd.crashes.place import crash_folders, read_all_crashes
from kdumpd.errors import KdumpError
from kdumpd.host.machine import read_machine
from kdumpd.host.pstore import PanicRecord, read_panics
from kdumpd.service.journal import Event, Journal
from kdumpd.service.json_file import read_json, write_atomic
from kdumpd.service.missed import (
    MISSING,
    Answer,
    Tag,
    crash_of,
    evidence,
    forget_tag,
    note_test,
    read_tag,
    read_test,
)
from kdumpd.service.places import Places
from kdumpd.service.records import SEEN_NAME

_STEP_NS = 3_000_000_000


class CrashWatch:
    """Holds what was last seen of the crash folder. `on_added` hears of each crash that was not there before.

    `missed` is what shows a crash of an earlier boot that left no dump; empty when there is none, or when the crash
    folder could not be looked at yet.
    """

    def __init__(
        self, places: Places, journal: Journal, on_added: Callable[[Crash], None] = lambda crash: None
    ) -> None:
        self._places = places
        self._journal = journal
        self._on_added = on_added
        self._seen_file = places.state_dir / SEEN_NAME
        self._stamp: tuple[tuple[Path, int, int], ...] | None = None
        self._crashes: tuple[Crash, ...] = ()
        self.folder: Path | None = None  # where they were looked for, None while that is not known
        self._told: set[str] = set()  # in this process, should the file not be writable
        self.missed = ""

    def read(self, config: Config) -> tuple[Crash, ...]:
        """All crashes, oldest first. Raises TargetError when the folder cannot be seen."""
        return read_all_crashes(config, self._places.root)

    def look(self, config: Config) -> tuple[Crash, ...]:
        """The same from memory while the folder is unchanged; none while it cannot be seen."""
        try:
            self.folder = None
            folders = crash_folders(config, self._places.root)
            self.folder = folders[0]
            stamp = tuple(found for found in map(_stamp, folders) if found is not None)
            if not stamp:
                raise FileNotFoundError(self.folder)
            if stamp != self._stamp:
                self._crashes = read_all_crashes(config, self._places.root)
                self._report()
                # What came in the same moment as the last thing may have come after it was read.
                self._stamp = stamp if all(_settled(mtime) for _, _, mtime in stamp) else None
        except (OSError, KdumpError):
            # Not mounted at this moment, or gone: what is not seen proves nothing.
            self._stamp = None
            self._crashes = ()
        return self._crashes

    def _report(self) -> None:
        """Tells of what is new, and asks once in a boot whether a crash left nothing."""
        panics = read_panics(self._places.root)
        names, keys = _read_seen(self._seen_file)
        if names is None:
            # The first start here. What has no manifest was not left by us, or in a time that nobody remembers.
            names = {crash.name for crash in self._crashes if crash.manifest is None}
            keys = {record.key for record in panics}
        fresh = [crash for crash in self._crashes if crash.name not in names | self._told]
        self._told.update(crash.name for crash in fresh)
        self._ask(panics, frozenset(keys), fresh)
        for crash in fresh:
            self._tell(crash)
            self._on_added(crash)
        # Should the fuller folder of a crash be removed, the other one is no news.
        old = {path.name for crash in self._crashes for path in crash.also}
        now = (names | old | {crash.name for crash in fresh}, {record.key for record in panics})
        if now != _read_seen(self._seen_file):
            text = json.dumps({"names": sorted(now[0]), "panics": sorted(now[1])}, indent=1) + "\n"
            with contextlib.suppress(OSError):  # told again at the next start, which harms nobody
                write_atomic(self._seen_file, text)

    def _ask(self, panics: tuple[PanicRecord, ...], keys: frozenset[str], fresh: list[Crash]) -> None:
        boot_id = read_machine(self._places.root).boot_id
        arrived = bool(fresh)
        self._settle(boot_id, fresh)
        answer = Answer(self._places.run_dir, boot_id)
        known = answer.read()
        self.missed = known or ""
        if known is None:
            shown = evidence(self._places.state_dir, boot_id, panics, keys)
            self.missed = shown if shown and not arrived else ""
            if self.missed:
                self._journal.tell(
                    Event.CRASH_WITHOUT_DUMP,
                    f"This machine crashed, and no dump of it is here: {self.missed}",
                    evidence=self.missed,
                )
        elif arrived:
            self.missed = ""
        answer.write(self.missed)
        forget_tag(self._places.state_dir, boot_id)

    def _settle(self, boot_id: str, fresh: list[Crash]) -> None:
        """A crash on purpose: did its dump come, or has it come by now?"""
        state_dir = self._places.state_dir
        tag, late = read_tag(state_dir, boot_id), False
        if tag is None:
            last, late = read_test(state_dir), True
            if last is None or last.outcome != MISSING:
                return
            tag = Tag(id=last.id, boot_id="", time_usec=last.time_usec)
        crash = crash_of(tag, fresh, late=late)
        if late and crash is None:
            return
        test = note_test(state_dir, tag, crash)
        if crash is not None:
            words = f"The crash on request, test {test.id}, left a dump ({test.outcome}): {crash.path}"
            self._journal.tell(Event.TEST_OVER, words, test=test.id, result=test.outcome, dump=str(crash.path))

    def _tell(self, crash: Crash) -> None:
        complete = crash.standing is Standing.COMPLETE
        manifest = crash.manifest
        panic = manifest.panic if manifest is not None else None
        words = f"A crash was captured ({crash.standing}): {crash.path}"
        if panic:
            words += f": {panic}"
        if crash.problem:
            words += f" ({crash.problem})"
        self._journal.tell(
            Event.CRASH_FOUND if complete else Event.CRASH_INCOMPLETE,
            words,
            dump=str(crash.path),
            result=crash.standing.value,
            panic=panic,
            kernel=manifest.kernel if manifest is not None else None,
            dump_bytes=crash.dump_bytes,
            duration_usec=crash.took_usec,
            reason=crash.problem,
        )


def _settled(mtime_ns: int) -> bool:
    """Whether the next change will have another time: clocks of filesystems take steps of 10 ms, some of 2 s (vfat)."""
    return abs(time.time_ns() - mtime_ns) > _STEP_NS


def _stamp(folder: Path) -> tuple[Path, int, int] | None:
    """What changes when a crash comes; None as long as there is no folder. Raises OSError when it cannot be seen."""
    try:
        status = folder.stat()
    except FileNotFoundError:
        return None
    return (folder, status.st_ino, status.st_mtime_ns)


def _read_seen(path: Path) -> tuple[set[str] | None, set[str]]:
    """The names of crashes and the keys of panics that were told of; no names when nothing is remembered."""
    raw = read_json(path)
    names, keys = (_texts((raw or {}).get(key)) for key in ("names", "panics"))
    return (None if raw is None else names), keys


def _texts(value: object) -> set[str]:
    return {text for text in value if isinstance(text, str)} if isinstance(value, list) else set()
