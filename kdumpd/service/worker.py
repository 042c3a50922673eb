# SPDX-License-Identifier: GPL-2.0-or-later
"""The engine's thread: jobs one after the other, and what `pace.py` says is due after changes.

Sleeps without a timeout while nothing is pending: an idle service wakes up for nothing.
"""

from __future__ import annotations

import functools
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from collections.abc import Set as AbstractSet

from kdumpd.service import lean
from kdumpd.service.pace import Due, Pace

Job = Callable[[], None]


class Worker:
    """`on_due` gets what is due and the kinds of the changes since the last time something was."""

    def __init__(self, on_due: Callable[[Due, AbstractSet[str]], None]) -> None:
        self._on_due = on_due
        self._condition = threading.Condition()
        self._jobs: deque[Job] = deque()
        self._pace = Pace()
        self._kinds: set[str] = set()
        self._alarm: float | None = None
        self._ending = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Begins to work."""
        self._thread.start()

    def stop(self, seconds: float) -> None:
        """Ends after the job under way; waits for that so long."""
        with self._condition:
            self._ending = True
            self._condition.notify()
        if self._thread.is_alive():
            self._thread.join(seconds)

    def do(self, job: Job) -> None:
        """Queues a job. Any thread may call it."""
        with self._condition:
            self._jobs.append(job)
            self._condition.notify()

    def changed(self, kind: str) -> None:
        """Notes a change. Any thread may call it, it returns at once."""
        with self._condition:
            self._kinds.add(kind)
            self._pace.note(time.monotonic())
            self._condition.notify()

    def wake_at(self, moment: float | None) -> None:
        """Acts at `moment` (monotonic seconds) even when nothing changes; None takes that back."""
        with self._condition:
            self._alarm = moment
            self._condition.notify()

    def _run(self) -> None:
        while (job := self._next()) is not None:
            try:
                job()
                lean.give_back()
            except Exception:
                # The thread is the service's only hand: whatever happened, it goes on.
                logging.getLogger(__name__).exception("A look at the machine failed")

    def _next(self) -> Job | None:
        """The next thing to do, once there is one; None at the end."""
        with self._condition:
            while not self._ending:
                if self._jobs:
                    return self._jobs.popleft()
                now = time.monotonic()
                due = self._pace.take(now)
                if self._alarm is not None and now >= self._alarm:
                    self._alarm = None
                    due = Due.ACT
                if due is not Due.NOTHING:
                    kinds, self._kinds = frozenset(self._kinds), set()
                    return functools.partial(self._on_due, due, kinds)
                moments = [at for at in (self._pace.next_at(), self._alarm) if at is not None]
                self._condition.wait(min(moments) - now if moments else None)
            return None
