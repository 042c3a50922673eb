# SPDX-License-Identifier: GPL-2.0-or-later
"""VMCOREINFO: what the dead kernel said of its own layout (linux: kernel/vmcore_info.c).

Lines of KEY=VALUE. A line that makes no sense is remembered and otherwise ignored, so that one bad line never
costs a dump; who needs a key that is absent decides what to do without it.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping

_TYPED = re.compile(r"(SYMBOL|SIZE|OFFSET|LENGTH|NUMBER)\(([^()]+)\)")

# Lines that only one architecture has (linux: arch/*/kernel/vmcore_info.c).
_MACHINE_MARKS = {b"NUMBER(phys_base)=": "x86_64", b"NUMBER(kimage_voffset)=": "aarch64"}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Vmcoreinfo:
    """The parsed note. `values` maps ("OFFSET", "page.flags") to a number, `texts` the plain keys to their text."""

    values: Mapping[tuple[str, str], int]
    texts: Mapping[str, str]
    bad_lines: tuple[str, ...] = ()

    def symbol(self, name: str) -> int | None:
        """Run-time virtual address of a symbol (KASLR already applied)."""
        return self.values.get(("SYMBOL", name))

    def size(self, name: str) -> int | None:
        """sizeof(struct name) in bytes."""
        return self.values.get(("SIZE", name))

    def offset(self, name: str) -> int | None:
        """Offset in bytes of "struct.member"."""
        return self.values.get(("OFFSET", name))

    def length(self, name: str) -> int | None:
        """Number of elements of an array."""
        return self.values.get(("LENGTH", name))

    def number(self, name: str) -> int | None:
        """A constant. The kernel prints many as signed long: mask to the width that is compared."""
        return self.values.get(("NUMBER", name))

    @property
    def release(self) -> str | None:
        """The release of the dead kernel, as `uname -r` prints it."""
        return self.texts.get("OSRELEASE")

    @property
    def crash_time(self) -> int | None:
        """Seconds of CLOCK_REALTIME when the kernel died."""
        text = self.texts.get("CRASHTIME", "")
        return int(text) if text.isdecimal() and len(text) < 12 else None


def parse_vmcoreinfo(data: bytes) -> Vmcoreinfo:
    """Reads the note's description. Of a key that occurs twice the last counts (CRASHTIME is appended late)."""
    values: dict[tuple[str, str], int] = {}
    texts: dict[str, str] = {}
    bad: list[str] = []
    for line in data.split(b"\0", 1)[0].decode("ascii", "replace").splitlines():
        key, equals, text = line.partition("=")
        if not equals:
            if line:
                bad.append(line)
            continue
        match = _TYPED.fullmatch(key)
        if match is None:
            texts[key] = text
            continue
        number = _number(text, 16 if match[1] == "SYMBOL" else 10)
        if number is None:
            bad.append(line)
        else:
            values[(match[1], match[2])] = number
    return Vmcoreinfo(values=values, texts=texts, bad_lines=tuple(bad))


def machine_of(data: bytes) -> str | None:
    """The architecture whose kernel wrote `data`, by uname's name, or None when nothing gives it away."""
    return next((name for mark, name in _MACHINE_MARKS.items() if mark in data), None)


def _number(text: str, base: int) -> int | None:
    try:
        number = int(text, 16 if text.lower().startswith("0x") else base)
    except ValueError:
        return None
    return number if -(1 << 63) <= number < 1 << 64 else None
