# SPDX-License-Identifier: GPL-2.0-or-later
"""What a guest says on its serial console: logged, kept, waited for. Outlives the QEMU process of one boot."""

from __future__ import annotations

import codecs
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

_LOOK_S = 0.02


class MachineLostError(AssertionError):
    """QEMU itself ended while somebody waited for the guest."""


class Console:
    """The serial console: every line goes to `log` with the seconds since power-on, and can be waited for.

    `echo` gets the same lines, `mirror` every piece of text as it comes.
    """

    def __init__(self, log: Path, echo: IO[str] | None = None) -> None:
        self._keys: IO[bytes] | None = None
        self.echo = echo
        self.mirror: Callable[[str], object] | None = None
        self._text = ""
        self._closed = False
        self._changed = threading.Condition()
        self._started = time.monotonic()
        self._log = log.open("w")

    def follow(self, said: IO[bytes], keys: IO[bytes], ended: Callable[[], bool]) -> None:
        """Takes in what is written to the file `said`, until `ended`; what is typed goes to `keys`."""
        self._keys = keys
        pending = ""
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        while True:
            over = ended()
            data = said.read(65536)
            if not data:
                if over:
                    break
                time.sleep(_LOOK_S)
                continue
            text = decoder.decode(data).replace("\r", "")
            if self.mirror is not None:
                self.mirror(text)
            with self._changed:
                self._text += text
                self._changed.notify_all()
            *lines, pending = (pending + text).split("\n")
            for line in lines:
                self._write(line)
        if pending:
            self._write(pending)

    def close(self) -> None:
        """No more will come: whoever waits is told."""
        with self._changed:
            self._closed = True
            self._log.close()
            self._changed.notify_all()

    def _write(self, line: str) -> None:
        stamped = f"{time.monotonic() - self._started:8.2f} {line}\n"
        self._log.write(stamped)
        self._log.flush()
        echo = self.echo
        if echo is not None:
            echo.write(stamped)
            echo.flush()

    @property
    def text(self) -> str:
        """All that was said so far."""
        with self._changed:
            return self._text

    def mark(self) -> int:
        """A place in the text; give it to `wait_for` to look only at what comes after."""
        with self._changed:
            return len(self._text)

    def wait_for(self, pattern: str, timeout: float, *, after: int = 0) -> re.Match[str]:
        """The first match of `pattern` behind `after`. Raises AssertionError with the last lines when none comes."""
        wanted = re.compile(pattern, re.MULTILINE)
        deadline = time.monotonic() + timeout
        with self._changed:
            while True:
                found = wanted.search(self._text, after)
                if found is not None:
                    return found
                left = deadline - time.monotonic()
                if self._closed or left <= 0:
                    why = "the machine ended" if self._closed else f"{timeout:.0f} s went by"
                    kind = MachineLostError if self._closed else AssertionError
                    raise kind(f"console: {why} without /{pattern}/; it last said:\n{self._text[-3000:]}")
                self._changed.wait(left)

    def send(self, data: bytes) -> None:
        """Types at the console."""
        assert self._keys is not None
        self._keys.write(data)
