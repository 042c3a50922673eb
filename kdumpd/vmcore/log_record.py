# SPDX-License-Identifier: GPL-2.0-or-later
"""One record of the kernel's log, whatever kind of buffer it was in, and how it is printed."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Protocol

_CALLER_IS_CPU = 1 << 31


class Memory(Protocol):
    """What the log needs: kernel virtual memory."""

    def read(self, vaddr: int, size: int) -> bytes:
        """`size` bytes at `vaddr`; raises VmcoreError."""

    def read_u64(self, vaddr: int) -> int:
        """An unsigned long at `vaddr`; raises VmcoreError."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One printk record. `caller` is "T123" or "C4" where the kernel notes it."""

    sequence: int
    time_nsec: int
    caller: str | None
    text: str

    def lines(self) -> Iterator[str]:
        """The record as dmesg(1) prints it; further lines of one record are indented by the width of the prefix."""
        prefix = f"[{self.time_nsec // 1_000_000_000:5d}.{self.time_nsec // 1000 % 1_000_000:06d}] "
        if self.caller is not None:
            prefix += f"[{self.caller:>6s}] "
        first, *rest = self.text.split("\n")
        yield prefix + first
        for line in rest:
            yield " " * len(prefix) + line


def escape(raw: bytes) -> str:
    """The text with everything that could act on a terminal written as \\xNN; the log is no longer trusted text."""
    text = raw.decode("utf-8", "backslashreplace")
    if text.replace("\n", "").replace("\t", "").isprintable():
        return text  # as nearly all are; a character at a time takes fifteen times as long
    return "".join(
        char if char.isprintable() or char in "\n\t" else "".join(f"\\x{byte:02x}" for byte in char.encode())
        for char in text
    )


def caller_name(identity: int) -> str:
    """What the kernel prints for a caller_id: a cpu where there was no task (linux: kernel/printk/printk.c)."""
    return f"{'C' if identity & _CALLER_IS_CPU else 'T'}{identity & ~_CALLER_IS_CPU}"
