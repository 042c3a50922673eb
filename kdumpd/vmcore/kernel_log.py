# SPDX-License-Identifier: GPL-2.0-or-later
"""The dead kernel's log, read from its printk ring buffer without debug information.

The lockless ring of 5.10 and later (linux: kernel/printk/printk_ringbuffer.h); printk_log.py has the buffer of older
kernels. Only page tables and VMCOREINFO
are needed, no struct page: the log can be saved before anything else is understood. Every index that comes from
the crashed memory is bounded, since a damaged ring must not loop.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from kdumpd.errors import VmcoreError
from kdumpd.vmcore.log_record import Memory, Record, caller_name, escape
from kdumpd.vmcore.printk_log import read_printk_log
from kdumpd.vmcore.vmcoreinfo import Vmcoreinfo

_MAX_RECORD_BITS = 22
_MAX_TEXT_BITS = 30
_MAX_STRUCT = 4096
_ID_MASK = (1 << 62) - 1
_COMMITTED, _FINALIZED = 1, 2


class _Ring:
    """The arrays of one printk_ringbuffer, read in whole."""

    def __init__(self, memory: Memory, info: Vmcoreinfo, ring: int) -> None:
        def offset(name: str) -> int:
            value = info.offset(name)
            if value is None or not 0 <= value < _MAX_STRUCT:
                raise VmcoreError(f"VMCOREINFO has no usable OFFSET({name}), so the log cannot be read")
            return value

        def size(name: str) -> int:
            value = info.size(name)
            if value is None or not 0 < value < _MAX_STRUCT:
                raise VmcoreError(f"VMCOREINFO has no usable SIZE({name}), so the log cannot be read")
            return value

        desc_ring = ring + offset("printk_ringbuffer.desc_ring")
        data_ring = ring + offset("printk_ringbuffer.text_data_ring")
        counter = offset("atomic_long_t.counter")

        def u32(address: int) -> int:
            return int.from_bytes(memory.read(address, 4), "little")

        count_bits = u32(desc_ring + offset("prb_desc_ring.count_bits"))
        size_bits = u32(data_ring + offset("prb_data_ring.size_bits"))
        if count_bits > _MAX_RECORD_BITS or size_bits > _MAX_TEXT_BITS:
            raise VmcoreError(f"the log ring claims 2^{count_bits} records and 2^{size_bits} bytes of text")
        self.count = 1 << count_bits
        self.text_size = 1 << size_bits
        self.head = memory.read_u64(desc_ring + offset("prb_desc_ring.head_id") + counter) & _ID_MASK
        self.tail = memory.read_u64(desc_ring + offset("prb_desc_ring.tail_id") + counter) & _ID_MASK

        self.desc_size = size("prb_desc")
        self.info_size = size("printk_info")
        self.descs = memory.read(
            memory.read_u64(desc_ring + offset("prb_desc_ring.descs")), self.count * self.desc_size
        )
        self.infos = memory.read(
            memory.read_u64(desc_ring + offset("prb_desc_ring.infos")), self.count * self.info_size
        )
        self.text = memory.read(memory.read_u64(data_ring + offset("prb_data_ring.data")), self.text_size)

        self.state_at = offset("prb_desc.state_var") + counter
        block = offset("prb_desc.text_blk_lpos")
        self.begin_at = block + offset("prb_data_blk_lpos.begin")
        self.next_at = block + offset("prb_data_blk_lpos.next")
        self.seq_at = offset("printk_info.seq")
        self.time_at = offset("printk_info.ts_nsec")
        self.length_at = offset("printk_info.text_len")
        self.caller_at = offset("printk_info.caller_id") if info.offset("printk_info.caller_id") is not None else None
        if max(self.state_at, self.begin_at, self.next_at) + 8 > self.desc_size:
            raise VmcoreError("VMCOREINFO puts members of struct prb_desc outside of it, so the log cannot be read")
        if max(self.seq_at + 8, self.time_at + 8, self.length_at + 2, (self.caller_at or 0) + 4) > self.info_size:
            raise VmcoreError("VMCOREINFO puts members of struct printk_info outside of it, so the log cannot be read")
        # The field is there without CONFIG_PRINTK_CALLER too, and then always zero; with it, zero is task 0.
        self.shows_caller = self.caller_at is not None and any(
            struct.unpack_from("<I", self.infos, at + self.caller_at)[0]
            for at in range(0, len(self.infos) - self.info_size + 1, self.info_size)
        )

    def record(self, number: int) -> Record | None:
        """The record of descriptor id `number`, or None when it was reused or never finished."""
        at = number % self.count * self.desc_size
        (state,) = struct.unpack_from("<Q", self.descs, at + self.state_at)
        if state & _ID_MASK != number or state >> 62 not in (_COMMITTED, _FINALIZED):
            return None
        (begin,) = struct.unpack_from("<Q", self.descs, at + self.begin_at)
        (end,) = struct.unpack_from("<Q", self.descs, at + self.next_at)
        info_at = number % self.count * self.info_size
        (sequence,) = struct.unpack_from("<Q", self.infos, info_at + self.seq_at)
        (time_nsec,) = struct.unpack_from("<Q", self.infos, info_at + self.time_at)
        (length,) = struct.unpack_from("<H", self.infos, info_at + self.length_at)
        caller = None
        if self.shows_caller and self.caller_at is not None:
            (identity,) = struct.unpack_from("<I", self.infos, info_at + self.caller_at)
            caller = caller_name(identity)
        text = self._text(begin, end, length)
        if text is None:
            return None
        return Record(sequence=sequence, time_nsec=time_nsec, caller=caller, text=escape(text))

    def _text(self, begin: int, end: int, length: int) -> bytes | None:
        if begin & 1 and end & 1:
            # A record without data: bit 1 tells a blank line from a record that was lost.
            return b"" if begin & 2 else None
        start = begin % self.text_size
        # The text wraps to the start of the ring unless it ends exactly at its end: 6.19 (prb: "allow perfect
        # fit") made that case legal, and asking for the last byte is right for older kernels too.
        if begin // self.text_size != (end - 1) // self.text_size:
            start = 0
        stop = end % self.text_size or self.text_size
        if stop - start < 8:
            return None
        return self.text[start + 8 : min(stop, start + 8 + length)]

    def __iter__(self) -> Iterator[Record]:
        number = self.tail
        for _ in range(self.count):
            record = self.record(number)
            if record is not None:
                yield record
            if number == self.head:
                return
            number = number + 1 & _ID_MASK


def read_log(memory: Memory, info: Vmcoreinfo) -> Iterator[Record]:
    """All records, the oldest first. Raises VmcoreError when there is no ring buffer that can be read."""
    pointer = info.symbol("prb")
    if pointer is None and info.symbol("log_buf") is not None:
        return read_printk_log(memory, info)
    if pointer is None:
        raise VmcoreError("VMCOREINFO has neither SYMBOL(prb) nor SYMBOL(log_buf), so nobody knows where the log is")
    return iter(_Ring(memory, info, memory.read_u64(pointer)))


def panic_line(lines: list[str]) -> str | None:
    """The line that says why the kernel died, without its time stamp, or None."""
    marks = ("Kernel panic - not syncing", "BUG: ", "Oops: ", "general protection fault", "sysrq: Trigger a crash")
    for mark in marks:
        for line in reversed(lines):
            if mark in line:
                return line[line.index(mark) :].strip()
    return None
