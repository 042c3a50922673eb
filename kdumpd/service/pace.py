# SPDX-License-Identifier: GPL-2.0-or-later
"""When to look and when to act, given that events come in bursts. Pure: the caller brings the clock.

One hot-plugged DIMM is dozens of events, an upgrade of a package hundreds. A *look* only reads and publishes, so it
comes soon and again and again while a burst lasts: what the bus shows is never much older than a second. *Acting*
builds and loads, so it waits until the burst is over, but not for ever.
"""

from __future__ import annotations

import enum

LOOK_SECONDS = 0.2  # from the first event to the first look
AGAIN_SECONDS = 1.0  # between two looks while events go on
QUIET_SECONDS = 1.0  # without an event, then the burst is over
LATEST_SECONDS = 5.0  # from the first event to acting, whatever comes after it


class Due(enum.Enum):
    """What the moment asks for."""

    NOTHING = enum.auto()
    LOOK = enum.auto()
    ACT = enum.auto()


class Pace:
    """The burst that is going on, if any. Times are seconds of a monotonic clock."""

    def __init__(self) -> None:
        self._first: float | None = None
        self._last = 0.0
        self._look_at: float | None = None
        self._looked = 0.0

    def note(self, now: float) -> None:
        """An event happened."""
        if self._first is None:
            self._first = now
            self._look_at = now + LOOK_SECONDS
        elif self._look_at is None:
            self._look_at = max(now + LOOK_SECONDS, self._looked + AGAIN_SECONDS)
        self._last = now

    def next_at(self) -> float | None:
        """When something is due; None while nothing happens."""
        if self._first is None:
            return None
        act_at = self._act_at(self._first)
        return act_at if self._look_at is None else min(act_at, self._look_at)

    def take(self, now: float) -> Due:
        """What is due now; it counts as done from here on."""
        if self._first is None:
            return Due.NOTHING
        if now >= self._act_at(self._first):
            self._first = self._look_at = None
            return Due.ACT
        if self._look_at is not None and now >= self._look_at:
            self._looked = now
            self._look_at = None
            return Due.LOOK
        return Due.NOTHING

    def _act_at(self, first: float) -> float:
        return min(self._last + QUIET_SECONDS, first + LATEST_SECONDS)
