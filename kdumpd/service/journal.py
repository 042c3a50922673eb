# SPDX-License-Identifier: GPL-2.0-or-later
"""What the service tells the journal: one event, one MESSAGE_ID, one sentence, KDUMPD_* fields.

units/kdumpd.catalog explains each MESSAGE_ID. Outside systemd the lines go to stderr with the <N> prefixes of
sd-daemon(3). Refuses to know when something is worth telling.
"""

from __future__ import annotations

import enum
import os
import sys
import threading
from typing import TextIO

from kdumpd.crashes.text import printable


class Event(enum.Enum):
    """An event: its MESSAGE_ID and its syslog priority."""

    RESERVED_MISSING = ("4148bdf676d34cd2828d8c0da9807ffa", 3)
    ARMED = ("0ec89ced4c5f488cb41983c9a59b48a9", 5)
    NOT_ARMED = ("5553e336577541039109f6add5e25102", 3)
    LOADED = ("2c82b3a005b94cc0886e4e289fe53bcb", 5)
    LOAD_FAILED = ("4ebc66d0d0b049578caaae21094495c3", 3)
    UNLOADED = ("89485c92ca4740b3b0266a8850a016db", 4)
    BUILT = ("2d94ccaa93e940f0b700e82030fb470e", 5)
    BUILD_FAILED = ("6c57cfe3c03f4cc99a468491763cc076", 3)
    IMAGE_REMOVED = ("98176de608084936824a1c4a2078a9e2", 5)
    CRASH_FOUND = ("8dd5fef6b2e54eaaa6e972647fb723b5", 4)
    CRASH_INCOMPLETE = ("2c44479db90046f5a12fa67f6a73e6c8", 3)
    TEST_CRASH = ("7c0f6b8e5a1d4c0b9f63d2ab4e81f7a5", 4)
    TEST_OVER = ("d41a90c35e7b46f2a8c6105f2e3b9d74", 5)
    CRASH_WITHOUT_DUMP = ("584e4b10c10c45599929a8f305afab81", 3)
    DUMP_DAMAGED = ("fd8e7d3dc9e149d78785b2e46efbc7dc", 3)
    FAULT = ("94399f25f2e44045a05a4e526392ef05", 3)

    @property
    def message_id(self) -> str:
        """128 bits, hexadecimal."""
        return self.value[0]

    @property
    def priority(self) -> int:
        """0 (emergency) to 7 (debug)."""
        return self.value[1]


class Journal:
    """Writes events; safe to be called from any thread. `stream` is for tests and for life without systemd."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream
        self._lock = threading.Lock()
        self._under_systemd = stream is None and "JOURNAL_STREAM" in os.environ

    def tell(self, event: Event, sentence: str, **fields: str | int | None) -> None:
        """One entry. `fields` become KDUMPD_<NAME>; those that are None are left out."""
        named = {f"KDUMPD_{name.upper()}": str(value) for name, value in fields.items() if value is not None}
        if self._under_systemd and self._send(event, sentence, named):
            return
        with self._lock:
            print(f"<{event.priority}>{printable(sentence)}", file=self._stream or sys.stderr, flush=True)

    def _send(self, event: Event, sentence: str, fields: dict[str, str]) -> bool:
        from systemd import journal

        try:
            journal.send(
                sentence,
                MESSAGE_ID=event.message_id,
                PRIORITY=str(event.priority),
                SYSLOG_IDENTIFIER="kdumpd",
                **fields,
            )
        except OSError:
            return False  # journald restarts or is gone; stderr still leads somewhere
        return True
