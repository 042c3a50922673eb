# SPDX-License-Identifier: GPL-2.0-or-later
"""Finds the symbol table of a kernel that does not tell where it is: VMCOREINFO names it only since 6.0.

The tables lie one after the other in read-only data, each aligned to 8 bytes (linux 5.10: scripts/kallsyms.c):
offsets, relative base, number of symbols, names, markers, token table, token index. The token table gives itself
away: characters stand for themselves, so it holds the digits as ten strings in a row.
"""

from __future__ import annotations

import numpy as np

from kdumpd.errors import VmcoreError
from kdumpd.vmcore.kallsyms import MAX_SYMBOLS, Memory, Tables

_DIGITS = b"".join(b"%d\0" % digit for digit in range(10))
_CHUNK = 1 << 20
_PAGE = 4096
_ALIGN = 8
_TOKENS = 256
_MAX_TOKEN_TABLE = 1 << 14
_PER_MARKER = 256
# A name has at most this many bytes with its length: what lies behind the last marker is bounded.
_MAX_NAME = 512


def find_tables(memory: Memory, start: int, end: int) -> Tables:
    """Looks through [start, end), the kernel image. Raises VmcoreError when there is no symbol table."""
    tail = b""
    at = start - start % _PAGE
    while at < end:
        data = _mapped(memory, at, min(_CHUNK, end - at))
        block = tail + data
        found = block.find(_DIGITS)
        while found >= 0:
            tables = _around(memory, at - len(tail) + found)
            if tables is not None:
                return tables
            found = block.find(_DIGITS, found + 1)
        tail = block[-len(_DIGITS) :]
        at += len(data)
    raise VmcoreError("the kernel image holds no symbol table (kallsyms)")


def _mapped(memory: Memory, at: int, size: int) -> bytes:
    """What is mapped of the next `size` bytes; pages of zeros for what is not."""
    try:
        return memory.read(at, size)
    except VmcoreError:
        if size <= _PAGE:
            return bytes(size)
        half = size // 2 // _PAGE * _PAGE or _PAGE
        return _mapped(memory, at, half) + _mapped(memory, at + half, size - half)


def _around(memory: Memory, digits: int) -> Tables | None:
    """The tables, if the digits at `digits` are those of a token table."""
    try:
        before = memory.read(digits - _MAX_TOKEN_TABLE, _MAX_TOKEN_TABLE)
        after = _mapped(memory, digits, _MAX_TOKEN_TABLE)
        place = len(before)
        # Tokens 0 to 47 come before that of "0"; the byte before the first of them is 0 as well, of a marker.
        for _ in range(ord("0") + 1):
            place = before.rfind(b"\0", 0, place)
        table = digits - len(before) + place + 1
        if place < 0 or table % _ALIGN:
            return None
        text = before[place + 1 :] + after
        places = [0]
        for _ in range(_TOKENS):
            places.append(text.index(b"\0", places[-1]) + 1)
        index = table + -(-places[-1] // _ALIGN) * _ALIGN
        if np.frombuffer(memory.read(index, 2 * _TOKENS), dtype="<u2").tolist() != places[:-1]:
            return None
        names, count = _names(memory, table)
        offsets = names - 16 - -(-4 * count // _ALIGN) * _ALIGN
        return Tables(
            names=names,
            num_syms=names - 8,
            token_table=table,
            token_index=index,
            offsets=offsets,
            relative_base=names - 16,
        )
    except (VmcoreError, ValueError):
        return None


def _names(memory: Memory, table: int) -> tuple[int, int]:
    """Where the names begin and how many they are, from the markers, which end at `table`. Raises VmcoreError."""
    room = -(-MAX_SYMBOLS // _PER_MARKER) * 4
    raw = np.frombuffer(_mapped(memory, table - room, room), dtype="<u4")[::-1]
    if raw[0] == 0:
        raw = raw[1:]  # padding
    # Markers ascend from 0: read backwards they descend to it.
    zeros = np.flatnonzero(raw == 0)
    length = int(zeros[0]) + 1 if len(zeros) else 0
    markers = raw[:length][::-1].astype(np.int64)
    if length < 2 or (np.diff(markers) <= 0).any():
        raise VmcoreError("no markers")
    first = table - (4 * length + 4 * (length % 2))
    latest = (first - int(markers[-1])) // _ALIGN * _ALIGN
    for names in range(latest, latest - _PER_MARKER * _MAX_NAME, -_ALIGN):
        count = int.from_bytes(memory.read(names - 8, 8), "little")
        if -(-count // _PER_MARKER) == length and _length_of(memory, names) == int(markers[1]):
            return names, count
    raise VmcoreError("no names")


def _length_of(memory: Memory, names: int) -> int:
    """How many bytes the names up to the second marker take."""
    raw = memory.read(names, _PER_MARKER * 64)
    at = 0
    for _ in range(_PER_MARKER):
        if at >= len(raw):
            return 0
        at += raw[at] + 1
    return at
