# SPDX-License-Identifier: GPL-2.0-or-later
"""Tells how far the work is: one line a second on a console, one line that redraws on a terminal.

Each report also touches the heartbeat file by which the image's init knows that the collector is not stuck, and
looks how much memory is left.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from kdumpd.errors import TargetError

_INTERVAL_SEC = 1.0
_REDRAW_SEC = 0.2


class Progress:
    """Phases are numbered; within one, `step` may be called as often as one likes.

    `lowest_available` is the least memory, in bytes, that the kernel called available at any report.
    """

    def __init__(self, phases: int, *, stream: TextIO | None = None, heartbeat: Path | None = None) -> None:
        self._stream = sys.stdout if stream is None else stream
        self._heartbeat = heartbeat
        self._phases = phases
        self._phase = 0
        self._name = ""
        # The console of a capture kernel says that it is a terminal, and is a serial line that somebody logs.
        self._redraws = self._stream.isatty() and heartbeat is None
        self._began = self._last = time.monotonic()
        self._open_line = False
        self._so_far = self._before = (0, 0)
        self._limit: float | None = None
        self._late = ""
        self.lowest_available: int | None = None

    @contextlib.contextmanager
    def limited(self, at: float | None, late: str) -> Iterator[None]:
        """From `at` (time.monotonic(); None for never) on, a sign of life within the block raises TargetError with the
        sentence `late`, whichever thread gives it: a server may be waited for in the one that syncs."""
        self._limit, self._late = at, late
        try:
            yield
        finally:
            self._limit = None

    def say(self, text: str) -> None:
        """A line of its own; it never raises."""
        clear = "\r\x1b[K" if self._open_line else ""
        self._open_line = False
        print(f"{clear}[kdumpd] {text}", file=self._stream, flush=True)
        self._beat()

    def begin_again(self, phase: int) -> None:
        """Back to the end of phase number `phase`, with nothing saved yet: for another target."""
        self._phase = phase
        self._so_far = (0, 0)

    def phase(self, name: str) -> None:
        """Begins the next phase."""
        self._phase += 1
        self._name = name
        self._began = self._last = time.monotonic()
        self._before = self._so_far
        self.say(f"{self._phase}/{self._phases} {name}")

    def step(self, done: int, total: int, page_bytes: int, written: int) -> None:
        """`done` of `total` pages, `page_bytes` saved so far as `written` bytes of dump, earlier phases included."""
        self._so_far = (done, page_bytes)
        now = time.monotonic()
        if now - self._last < (_REDRAW_SEC if self._redraws else _INTERVAL_SEC):
            return
        self._last = now
        elapsed = now - self._began
        done_here, bytes_here = done - self._before[0], page_bytes - self._before[1]
        rate = bytes_here / elapsed
        left = (total - done) * elapsed / done_here if done_here else 0.0
        text = (
            f"[kdumpd] {self._phase}/{self._phases} {self._name} {100 * done // max(1, total):3d} %  "
            f"{rate / (1 << 20):.0f} MiB/s  ETA {int(left) // 60}:{int(left) % 60:02d}  "
            f"{size_text(page_bytes)} -> {size_text(written)}"
        )
        print(f"\r{text}\x1b[K" if self._redraws else text, end="" if self._redraws else "\n", file=self._stream)
        self._stream.flush()
        self._open_line = self._redraws
        self.alive()

    def alive(self) -> None:
        """Touches the heartbeat file. Raises TargetError when the time of `limited` is over."""
        self._beat()
        limit = self._limit
        if limit is not None and time.monotonic() >= limit:
            raise TargetError(self._late)

    def _beat(self) -> None:
        if self._heartbeat is not None:
            self._heartbeat.touch()
        available = available_memory()
        if available is not None and (self.lowest_available is None or available < self.lowest_available):
            self.lowest_available = available


def available_memory(meminfo: Path = Path("/proc/meminfo")) -> int | None:
    """MemAvailable of proc(5) in bytes; None where that cannot be read."""
    try:
        for line in meminfo.read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return None


def peak_rss(status: Path = Path("/proc/self/status")) -> int | None:
    """The most memory this process ever held, in bytes (VmHWM of proc(5))."""
    for line in status.read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return None


def size_text(size: int) -> str:
    """Bytes for a person: 28.7M."""
    value = float(size)
    for unit in ("B", "K", "M", "G"):
        if value < 1024:
            return f"{value:.0f}{unit}" if unit == "B" else f"{value:.1f}{unit}"
        value /= 1024
    return f"{value:.1f}T"
