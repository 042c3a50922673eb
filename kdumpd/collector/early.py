# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel log, saved elsewhere when the first target does not answer soon.

Whatever becomes of the dump, the log is what says why the machine died. While the first target of a chain hangs in a
mount or a connection, a thread takes the log to the next one that answers.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

from kdumpd.config.capture import Destination

EARLY_SEC = 6.0  # what is left of ten seconds is for reaching the other target
_PATIENCE_SEC = 60.0
_POLL_SEC = 0.2


class EarlyLog:
    """Waits for `after_sec`, then calls `save` with one of `others` after the other until one says True."""

    def __init__(
        self, others: Sequence[Destination], save: Callable[[Destination], bool], after_sec: float = EARLY_SEC
    ) -> None:
        self._others = others
        self._save = save
        self._saved = threading.Event()
        self._thread: threading.Thread | None = None
        if others:
            self._thread = threading.Thread(target=self._run, args=(after_sec,), name="early log", daemon=True)
            self._thread.start()

    def not_needed(self) -> None:
        """The log is safe: the thread need not begin, or go on with the next target."""
        self._saved.set()

    def settle(self, alive: Callable[[], None]) -> None:
        """Waits until the thread has its hands off the other targets, for a minute at most."""
        self._saved.set()
        end = time.monotonic() + _PATIENCE_SEC
        while self._thread is not None and self._thread.is_alive() and time.monotonic() < end:
            alive()
            self._thread.join(_POLL_SEC)

    def _run(self, after_sec: float) -> None:
        if self._saved.wait(after_sec):
            return
        for destination in self._others:
            if self._saved.is_set() or self._save(destination):
                return
