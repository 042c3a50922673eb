# SPDX-License-Identifier: GPL-2.0-or-later
"""The collector and the supervisor (initramfs/busybox/init): orders on the command line, answers
in /run/kdumpd/answers.

Each answer is a file of one line.

`target` is the number of the target under way, from 1 on; `result` that of the manifest, `name` and `path` where it
was saved, `mount` the filesystem that has the dump as /proc/mounts showed it, `reason` why there is no dump; `told`
exists as soon as a manifest lies on any target.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence
from pathlib import Path

_LONGEST = 500


class Answers:
    """The files in `folder`; None is for a collector that nobody supervises. A file that cannot be written costs only
    what it would have said."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder

    def tell(self, name: str, text: str) -> None:
        """The text as one line that a shell can put into JSON as it is."""
        if self._folder is None:
            return
        line = "".join(char if char.isprintable() and char not in '"\\' else "'" for char in text)[:_LONGEST]
        with contextlib.suppress(OSError):
            (self._folder / name).write_text(line + "\n", encoding="utf-8")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Orders:
    """What the supervisor wants of this run.

    The first `after` targets were tried by an earlier run, which ended for the reason `because`. `until_sec` is the
    uptime (time.monotonic()) at which this process is killed.
    """

    after: int = 0
    until_sec: int | None = None
    because: str = ""


def parse_orders(words: Sequence[str]) -> Orders:
    """The options behind `capture`. What is not understood is left out: nothing must keep a capture from beginning."""
    given = dict(zip(words[::2], words[1::2], strict=False))

    def number(name: str) -> int | None:
        text = given.get(name, "")
        return int(text) if text.isascii() and text.isdigit() else None

    return Orders(after=number("--after") or 0, until_sec=number("--until"), because=given.get("--because", ""))
