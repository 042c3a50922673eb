# SPDX-License-Identifier: GPL-2.0-or-later
"""The log of kernels 3.5 to 5.9: records of any length, one behind the other (linux: kernel/printk/printk.c of 5.9).

A record is a struct printk_log (struct log before 3.11), its text and its dictionary; `len` is the way to the next
one, and a `len` of 0 sends the reader back to the start of the buffer. Every number in it is damaged memory until
shown otherwise: a walk visits no byte of the buffer twice.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from kdumpd.errors import VmcoreError
from kdumpd.vmcore.log_record import Memory, Record, caller_name, escape
from kdumpd.vmcore.vmcoreinfo import Vmcoreinfo

_MAX_BUFFER = 1 << 30
_MAX_STRUCT = 4096


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Buffer:
    """The whole buffer, where its records begin and end, and offsets into a record's header of `header` bytes."""

    data: bytes
    first: int
    end: int
    header: int
    time_at: int
    length_at: int
    text_length_at: int
    caller_at: int | None

    def number(self, at: int, size: int) -> int:
        """A little-endian number of the buffer."""
        return int.from_bytes(self.data[at : at + size], "little")


def _buffer(memory: Memory, info: Vmcoreinfo) -> _Buffer:
    # struct log became struct printk_log in 3.11 (62e32ac3505a).
    struct = "printk_log" if info.size("printk_log") is not None else "log"
    header = info.size(struct)
    if header is None or not 12 <= header < _MAX_STRUCT:
        raise VmcoreError("VMCOREINFO has no usable SIZE(printk_log), so the log cannot be read")

    def offset(member: str, size: int) -> int:
        value = info.offset(f"{struct}.{member}")
        if value is None or not 0 <= value <= header - size:
            raise VmcoreError(f"VMCOREINFO has no usable OFFSET({struct}.{member}), so the log cannot be read")
        return value

    def u32(name: str) -> int:
        symbol = info.symbol(name)
        if symbol is None:
            raise VmcoreError(f"VMCOREINFO has no SYMBOL({name}), so the log cannot be read")
        return int.from_bytes(memory.read(symbol, 4), "little")

    pointer = info.symbol("log_buf")
    if pointer is None:
        raise VmcoreError("VMCOREINFO has no SYMBOL(log_buf), so the log cannot be read")
    size, first, end = u32("log_buf_len"), u32("log_first_idx"), u32("log_next_idx")
    if not header <= size <= _MAX_BUFFER or first >= size or end > size:
        raise VmcoreError(f"the log claims {size} bytes, from {first} to {end}")
    caller_at = None
    if info.offset(f"{struct}.caller_id") is not None:  # 5.1, with CONFIG_PRINTK_CALLER (15ff2069cb7f)
        caller_at = offset("caller_id", 4)
    return _Buffer(
        data=memory.read(memory.read_u64(pointer), size),
        first=first,
        end=end,
        header=header,
        time_at=offset("ts_nsec", 8),
        length_at=offset("len", 2),
        text_length_at=offset("text_len", 2),
        caller_at=caller_at,
    )


def _records(buffer: _Buffer) -> Iterator[tuple[int, Record]]:
    """Records with the places where they begin. Raises VmcoreError where one is damaged; those before it are good."""
    at, sequence, wrapped = buffer.first, 0, False
    # An empty buffer and a full one both have first == end: only the record there tells.
    while at != buffer.end or (sequence == 0 and buffer.number(at + buffer.length_at, 2)):
        if at + buffer.header > len(buffer.data):
            raise VmcoreError(f"the log is damaged at {at:#x}: a record reaches beyond its buffer")
        length = buffer.number(at + buffer.length_at, 2)
        if length == 0 and not wrapped and at > buffer.end:
            at, wrapped = 0, True
            continue
        text_length = buffer.number(at + buffer.text_length_at, 2)
        if length < buffer.header + text_length or at + length > len(buffer.data):
            raise VmcoreError(f"the log is damaged at {at:#x}: a record of {length} bytes holds {text_length} of text")
        text_at = at + buffer.header
        caller = None if buffer.caller_at is None else caller_name(buffer.number(at + buffer.caller_at, 4))
        yield (
            at,
            Record(
                sequence=sequence,
                time_nsec=buffer.number(at + buffer.time_at, 8),
                caller=caller,
                text=escape(buffer.data[text_at : text_at + text_length]),
            ),
        )
        sequence += 1
        begin, at = at, at + length
        if begin < buffer.end < at or (wrapped and at > buffer.end):
            raise VmcoreError(f"the log is damaged at {begin:#x}: a record reaches beyond the newest one")


def read_printk_log(memory: Memory, info: Vmcoreinfo) -> Iterator[Record]:
    """All records, the oldest first, counted from 0. Raises VmcoreError when there is no such log, or at a damaged
    record, after the good ones before it."""
    return (record for _, record in _records(_buffer(memory, info)))


def cleared_sequence(memory: Memory, info: Vmcoreinfo) -> int:
    """How many of the records were there when the log was last cleared (dmesg -C)."""
    symbol = info.symbol("clear_idx")
    if symbol is None:
        raise VmcoreError("VMCOREINFO does not say where clear_idx is, so nobody knows when the log was cleared")
    cleared = int.from_bytes(memory.read(symbol, 4), "little")
    buffer = _buffer(memory, info)
    count = 0
    for at, record in _records(buffer):
        if at == cleared:
            return record.sequence
        count = record.sequence + 1
    # The newest record may be older than the clearing; an index that is nowhere was overwritten since.
    return count if cleared == buffer.end else 0
