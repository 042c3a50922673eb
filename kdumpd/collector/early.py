# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel log, saved elsewhere when the first target does not answer soon.

Whatever becomes of the dump, the log is what says why the machine died. While the first target of a chain hangs in a
mount or a connection, threads take the log to the others, each begun a little after the one before it, since any of
them may hang as well: more than one may get the log.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

from kdumpd.config.capture import Destination

EARLY_SEC = 6.0  # what is left of ten seconds is for reaching another target
_NEXT_SEC = 1.5
_PATIENCE_SEC = 60.0
_POLL_SEC = 0.2


class EarlyLog:
    """Waits for `after_sec`, then calls `save` with each of `others`, the next one when `next_sec` later none has said
    True, in threads of their own."""

    def __init__(
        self,
        others: Sequence[Destination],
        save: Callable[[Destination], bool],
        after_sec: float = EARLY_SEC,
        next_sec: float = _NEXT_SEC,
    ) -> None:
        self._others = others
        self._save = save
        self._saved = threading.Event()
        self._next_sec = next_sec
        self._threads: list[threading.Thread] = []
        if others:
            self._begin(self._run, after_sec)

    def _begin(self, work: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=work, args=arguments, name="early log", daemon=True)
        self._threads.append(thread)
        thread.start()

    def not_needed(self) -> None:
        """The log is safe: no further target need be tried."""
        self._saved.set()

    def settle(self, alive: Callable[[], None]) -> None:
        """Waits until the threads have their hands off the other targets, for a minute at most."""
        self._saved.set()
        end = time.monotonic() + _PATIENCE_SEC
        while (busy := [thread for thread in self._threads if thread.is_alive()]) and time.monotonic() < end:
            alive()
            busy[0].join(_POLL_SEC)

    def _run(self, after_sec: float) -> None:
        if self._saved.wait(after_sec):
            return
        for destination in self._others:
            self._begin(self._try, destination)
            if self._saved.wait(self._next_sec):
                return

    def _try(self, destination: Destination) -> None:
        if not self._saved.is_set() and self._save(destination):
            self._saved.set()
