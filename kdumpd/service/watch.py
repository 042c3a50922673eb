# SPDX-License-Identifier: GPL-2.0-or-later
"""Brings the kernel's events into the main loop: inotify, device events, the list of mounts.

Every event becomes one call of `changed(kind)`, which has to be cheap and safe in any thread. Knows nothing of what
the engine makes of it, nor of which paths matter: that is `watchlist.py`.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections.abc import Callable, Iterable
from pathlib import Path

from gi.repository import GLib

from kdumpd.errors import os_reason
from kdumpd.host import inotify
from kdumpd.host.uevent import open_uevents, read_uevents
from kdumpd.service.watchlist import Rule

_SUBSYSTEMS = frozenset({"cpu", "memory", "block"})
_AGAIN: bool = GLib.SOURCE_CONTINUE
_LOG = logging.getLogger(__name__)


class Watcher:
    """Watches from `attach` on. `uevents` is another socket than the kernel's only in tests."""

    def __init__(
        self, changed: Callable[[str], None], *, root: Path = Path("/"), uevents: socket.socket | None = None
    ) -> None:
        self._changed = changed
        self._root = root
        self._lock = threading.Lock()
        self._rules: dict[int, tuple[Rule, ...]] = {}
        self._pins: dict[int, int] = {}
        self._said: set[str] = set()
        self.inotify: inotify.Inotify | None = None
        self._uevents = uevents
        self._mounts = -1
        self._sources: list[int] = []

    def attach(self) -> None:
        """Adds the sources to the main loop. What cannot be watched is said once; the service lives without it."""
        try:
            self.inotify = inotify.Inotify()
            self._source(self.inotify.fd, GLib.IO_IN, self._on_inotify)
        except OSError as error:
            self._say(f"Files cannot be watched: {error}")
        try:
            self._uevents = self._uevents or open_uevents()
            self._source(self._uevents.fileno(), GLib.IO_IN, self._on_uevent)
        except OSError as error:
            self._say(f"Device events cannot be received: {error}")
        try:
            self._mounts = os.open(self._root / "proc/self/mountinfo", os.O_RDONLY | os.O_CLOEXEC)
            # proc(5): a change of the mounts is POLLERR and POLLPRI on this file.
            self._source(self._mounts, GLib.IO_PRI | GLib.IO_ERR, self._on_mounts)
        except OSError as error:
            self._say(f"Mounts cannot be watched: {error}")

    def update(self, rules: Iterable[Rule]) -> None:
        """Watches what `rules` name from now on. May be called in any thread.

        What was not watched before may have changed since whoever calls has looked: `changed` hears of it.
        """
        if self.inotify is None:
            return
        wanted: dict[str, list[Rule]] = {}
        for rule in rules:
            wanted.setdefault(os.path.realpath(rule.path), []).append(rule)
        with self._lock:
            found: dict[int, tuple[Rule, ...]] = {}
            for path, together in wanted.items():
                watch = self._add(self.inotify, Path(path), together)
                if watch is not None:
                    found[watch] = (*found.get(watch, ()), *together)
            for watch in self._rules.keys() - found.keys():
                self.inotify.remove(watch)
                self._unpin(watch)
            fresh = found.keys() - self._rules.keys()
            self._rules = found
        if fresh:
            self._changed("watch")

    def close(self) -> None:
        """Ends all of it."""
        for source in self._sources:
            GLib.source_remove(source)
        for watch in list(self._pins):
            self._unpin(watch)
        if self.inotify is not None:
            self.inotify.close()
            self.inotify = None
        if self._uevents is not None:
            self._uevents.close()
        if self._mounts >= 0:
            os.close(self._mounts)

    def _add(self, inotify_: inotify.Inotify, path: Path, rules: list[Rule]) -> int | None:
        mask = 0
        for rule in rules:
            mask |= rule.mask
        try:
            watch = inotify_.add(path, mask | inotify.MASK_ADD)
            if mask == inotify.MODIFY and watch not in self._pins:
                # The inodes of /proc and /sys live as long as somebody holds their names: without this, memory
                # pressure would leave the watch on an inode that nobody writes to any more.
                self._pins[watch] = os.open(path, os.O_PATH | os.O_CLOEXEC)
            return watch
        except FileNotFoundError:
            return None  # its folder is watched as well where that matters
        except OSError as error:
            self._say(f"Not everything can be watched (fs.inotify.max_user_watches?): {os_reason(error)}")
            return None

    def _unpin(self, watch: int) -> None:
        pin = self._pins.pop(watch, -1)
        if pin >= 0:
            os.close(pin)

    def _on_inotify(self, *_: object) -> bool:
        assert self.inotify is not None
        kinds: set[str] = set()
        events = self.inotify.read()
        with self._lock:
            for event in events:
                kinds |= self._kinds(event)
                if event.mask & inotify.IGNORED:
                    self._rules.pop(event.watch, None)
                    self._unpin(event.watch)
        for kind in kinds:
            self._changed(kind)
        return _AGAIN

    def _kinds(self, event: inotify.Event) -> set[str]:
        if event.mask & inotify.OVERFLOW:
            return {rule.kind for rules in self._rules.values() for rule in rules}
        rules = self._rules.get(event.watch, ())
        return {rule.kind for rule in rules if not event.name or rule.names is None or event.name in rule.names}

    def _on_uevent(self, *_: object) -> bool:
        assert self._uevents is not None
        try:
            kinds = _SUBSYSTEMS & {event.subsystem for event in read_uevents(self._uevents)}
        except OSError:
            kinds = _SUBSYSTEMS  # the kernel dropped some: anything may have happened
        for kind in kinds:
            self._changed(kind)
        return _AGAIN

    def _on_mounts(self, *_: object) -> bool:
        self._changed("mounts")
        return _AGAIN

    def _source(self, fd: int, condition: GLib.IOCondition, callback: Callable[..., bool]) -> None:
        self._sources.append(GLib.io_add_watch(fd, GLib.PRIORITY_DEFAULT, condition, callback))

    def _say(self, words: str) -> None:
        if words not in self._said:
            self._said.add(words)
            _LOG.warning("%s; changes are noticed later", words)
