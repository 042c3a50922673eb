# SPDX-License-Identifier: GPL-2.0-or-later
"""Tells how far the work is: one line a second on a console, one line that redraws on a terminal.

Each report also touches the heartbeat file by which the image's init knows that the collector is not stuck.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TextIO

_INTERVAL_SEC = 1.0


class Progress:
    """Phases are numbered; within one, `step` may be called as often as one likes."""

    def __init__(self, phases: int, *, stream: TextIO | None = None, heartbeat: Path | None = None) -> None:
        self._stream = sys.stdout if stream is None else stream
        self._heartbeat = heartbeat
        self._phases = phases
        self._phase = 0
        self._name = ""
        self._redraws = self._stream.isatty() and heartbeat is None
        self._began = self._last = time.monotonic()

    def say(self, text: str) -> None:
        """A line of its own."""
        end = "\x1b[K\n" if self._redraws else "\n"
        print(f"[kdumpd] {text}", end=end, file=self._stream, flush=True)
        self.alive()

    def phase(self, name: str) -> None:
        """Begins the next phase."""
        self._phase += 1
        self._name = name
        self._began = self._last = time.monotonic()
        self.say(f"{self._phase}/{self._phases} {name}")

    def step(self, done: int, total: int, page_bytes: int, written: int) -> None:
        """`done` of `total` pages, `page_bytes` saved so far as `written` bytes of dump."""
        now = time.monotonic()
        if now - self._last < _INTERVAL_SEC:
            return
        self._last = now
        elapsed = now - self._began
        rate = page_bytes / elapsed
        left = (total - done) * elapsed / done if done else 0.0
        text = (
            f"[kdumpd] {self._phase}/{self._phases} {self._name} {100 * done // max(1, total):3d} %  "
            f"{rate / (1 << 20):.0f} MiB/s  ETA {int(left) // 60}:{int(left) % 60:02d}  "
            f"{size_text(page_bytes)} -> {size_text(written)}"
        )
        print(text, end="\x1b[K\r" if self._redraws else "\n", file=self._stream, flush=True)
        self.alive()

    def alive(self) -> None:
        """Touches the heartbeat file."""
        if self._heartbeat is not None:
            self._heartbeat.touch()


def size_text(size: int) -> str:
    """Bytes for a person: 28.7M."""
    value = float(size)
    for unit in ("B", "K", "M", "G"):
        if value < 1024:
            return f"{value:.0f}{unit}" if unit == "B" else f"{value:.1f}{unit}"
        value /= 1024
    return f"{value:.1f}T"
