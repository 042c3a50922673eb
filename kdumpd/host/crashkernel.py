# SPDX-License-Identifier: GPL-2.0-or-later
"""crashkernel= in its whole grammar, as kernel/crash_reserve.c reads it.

Knows the text on the command line and what a kernel would make of it. Refuses to know what was really reserved:
that is `reservation.py`.

    crashkernel=SIZE[@OFFSET]
    crashkernel=START-[END]:SIZE[,START-[END]:SIZE...][@OFFSET]
    crashkernel=SIZE,high     crashkernel=SIZE,low     crashkernel=SIZE,cma

Each class is read on its own and the last entry of a class counts. A plain entry makes `,high` and `,low` void.
"""

from __future__ import annotations

import dataclasses
import enum
import re

from kdumpd.host.cmdline import parse_cmdline

_SIZE = re.compile(r"(0[xX][0-9a-fA-F]+|0[0-7]*|[1-9][0-9]*)([kKmMgGtTpPeE]?)")
_UNIT_SHIFT = {"": 0, "k": 10, "m": 20, "g": 30, "t": 40, "p": 50, "e": 60}
_ROUND_BYTES = 128 << 20  # ranges are compared with the memory size rounded up to this


class Kind(enum.StrEnum):
    """The class of an entry."""

    PLAIN = "plain"
    HIGH = "high"
    LOW = "low"
    CMA = "cma"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """`size_bytes` are reserved on a machine with start <= memory < end; no `end_bytes` means no limit."""

    start_bytes: int
    end_bytes: int | None
    size_bytes: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One crashkernel= word. `error` says why a kernel refuses it; the other fields are then empty."""

    text: str
    kind: Kind
    size_bytes: int = 0
    ranges: tuple[Range, ...] = ()
    offset_bytes: int | None = None
    error: str | None = None

    def size_for(self, memory_bytes: int) -> int:
        """Bytes this entry asks for on a machine with `memory_bytes`; the first range that fits counts."""
        if not self.ranges:
            return self.size_bytes
        rounded = -(-memory_bytes // _ROUND_BYTES) * _ROUND_BYTES
        for range_ in self.ranges:
            if range_.start_bytes <= rounded and (range_.end_bytes is None or rounded < range_.end_bytes):
                return range_.size_bytes
        return 0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Crashkernel:
    """The entries that count: the last one of each class."""

    plain: Entry | None = None
    high: Entry | None = None
    low: Entry | None = None
    cma: Entry | None = None

    @property
    def main(self) -> Entry | None:
        """The entry that decides about the main area."""
        return self.plain or self.high

    @property
    def asked(self) -> bool:
        """True when the command line has any crashkernel=."""
        return any((self.plain, self.high, self.low, self.cma))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Expectation:
    """What a kernel should have reserved, or the reason why it reserves nothing (half a sentence)."""

    size_bytes: int
    problem: str | None = None


def parse_size(text: str) -> int:
    """memparse() of lib/cmdline.c: 0x, 0 or decimal, and one of K M G T P E. Raises ValueError."""
    match = _SIZE.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not a size")
    digits = match[1]
    base = 16 if digits[:2] in ("0x", "0X") else 8 if digits.startswith("0") else 10
    return int(digits, base) << _UNIT_SHIFT[match[2].lower()]


def parse_entry(text: str) -> Entry:
    """One value of crashkernel=. Never raises: what a kernel refuses has its `error` set."""
    for kind in (Kind.HIGH, Kind.LOW, Kind.CMA):
        if text.endswith("," + kind):
            try:
                return Entry(text=text, kind=kind, size_bytes=parse_size(text[: -len(kind) - 1]))
            except ValueError as error:
                return Entry(text=text, kind=kind, error=str(error))
    try:
        return _parse_plain(text)
    except ValueError as error:
        return Entry(text=text, kind=Kind.PLAIN, error=str(error))


def _parse_plain(text: str) -> Entry:
    body, at, offset_text = text.partition("@")
    offset = parse_size(offset_text) if at else None
    if ":" not in body:
        return Entry(text=text, kind=Kind.PLAIN, size_bytes=parse_size(body), offset_bytes=offset)
    ranges = tuple(_parse_range(part) for part in body.split(","))
    return Entry(text=text, kind=Kind.PLAIN, ranges=ranges, offset_bytes=offset)


def _parse_range(text: str) -> Range:
    span, colon, size = text.partition(":")
    start_text, dash, end_text = span.partition("-")
    if not colon or not dash:
        raise ValueError(f"{text!r} is not START-[END]:SIZE")
    start = parse_size(start_text)
    end = parse_size(end_text) if end_text else None
    if end is not None and end <= start:
        raise ValueError(f"the range {span!r} ends before it starts")
    return Range(start_bytes=start, end_bytes=end, size_bytes=parse_size(size))


def parse_crashkernel(cmdline: str) -> Crashkernel:
    """The crashkernel= entries of a whole command line."""
    last: dict[str, Entry] = {}
    for name, value in parse_cmdline(cmdline):
        if name == "crashkernel" and value is not None:
            entry = parse_entry(value)
            last[entry.kind.value] = entry
    return Crashkernel(**last)


def reserved_expectation(request: Crashkernel, memory_bytes: int) -> Expectation:
    """What a kernel reserves for `request` on a machine with `memory_bytes` of RAM, the CMA area left out.

    Source: parse_crashkernel() and reserve_crashkernel_generic() in kernel/crash_reserve.c.
    """
    main = request.main
    if main is None:
        return Expectation(size_bytes=0, problem="it has no crashkernel=SIZE entry")
    if main.error is not None:
        return Expectation(size_bytes=0, problem=f"the kernel cannot read it: {main.error}")
    if main.kind is Kind.HIGH and request.low is not None and request.low.error is not None:
        return Expectation(size_bytes=0, problem=f"the kernel cannot read its ,low part: {request.low.error}")
    size = main.size_for(memory_bytes)
    if size == 0:
        return Expectation(size_bytes=0, problem=f"it asks for nothing on a machine with {memory_bytes >> 20} MiB")
    if size >= memory_bytes > 0:
        return Expectation(size_bytes=0, problem=f"it asks for as much as the machine has ({memory_bytes >> 20} MiB)")
    return Expectation(size_bytes=size)
