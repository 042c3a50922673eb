# SPDX-License-Identifier: GPL-2.0-or-later
"""Notices crashes that arrived since the last look, and says each one once in the journal.

The crash folder is read again only when it changed. What was reported is remembered by name, not by time: the clock
of a capture kernel may stand in 1970.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

from kdumpd.config.model import Config
from kdumpd.crashes.index import Crash, Standing, read_crashes
from kdumpd.crashes.place import crash_folder
from kdumpd.errors import KdumpError
from kdumpd.service.journal import Event, Journal
from kdumpd.service.places import Places
from kdumpd.service.records import SEEN_NAME, read_json, write_atomic


class CrashWatch:
    """Holds what was last seen of the crash folder."""

    def __init__(self, places: Places, journal: Journal) -> None:
        self._places = places
        self._journal = journal
        self._seen_file = places.state_dir / SEEN_NAME
        self._seen = _read_seen(self._seen_file)
        self._stamp: tuple[Path, int, int] | None = None
        self._crashes: tuple[Crash, ...] = ()
        self.folder: Path | None = None  # where they were looked for, None while that is not known

    def read(self, config: Config) -> tuple[Crash, ...]:
        """All crashes, oldest first. Raises TargetError when the folder cannot be seen."""
        return read_crashes(crash_folder(config, self._places.root))

    def look(self, config: Config) -> tuple[Crash, ...]:
        """The same from memory while the folder is unchanged; none while it cannot be seen."""
        try:
            self.folder = None
            self.folder = folder = crash_folder(config, self._places.root)
            status = folder.stat()
            stamp = (folder, status.st_ino, status.st_mtime_ns)
            if stamp != self._stamp:
                self._crashes = read_crashes(folder)
                self._report()
                self._stamp = stamp
        except (OSError, KdumpError):
            # Not mounted at this moment, or gone: what is not seen proves nothing.
            self._stamp = None
            self._crashes = ()
        return self._crashes

    def _report(self) -> None:
        fresh = [crash for crash in self._crashes if crash.name not in self._seen]
        for crash in fresh:
            self._tell(crash)
        if fresh:
            self._seen.update(crash.name for crash in fresh)
            text = json.dumps({"names": sorted(self._seen)}, indent=1) + "\n"
            with contextlib.suppress(OSError):  # told again at the next start, which harms nobody
                write_atomic(self._seen_file, text)

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


def _read_seen(path: Path) -> set[str]:
    names = (read_json(path) or {}).get("names", [])
    return {name for name in names if isinstance(name, str)} if isinstance(names, list) else set()
