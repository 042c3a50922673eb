# SPDX-License-Identifier: GPL-2.0-or-later
"""The first record of the kernel log after the last `dmesg -C` (linux: kernel/printk/printk.c)."""

from __future__ import annotations

from kdumpd.errors import VmcoreError
from kdumpd.vmcore.log_record import Memory
from kdumpd.vmcore.printk_log import cleared_sequence
from kdumpd.vmcore.vmcoreinfo import Vmcoreinfo

_MAX_STRUCT = 4096


def clear_sequence(memory: Memory, info: Vmcoreinfo) -> int:
    """The sequence number of that record. Raises VmcoreError when it cannot be found."""
    symbol = info.symbol("clear_seq")
    if symbol is None and info.symbol("clear_idx") is not None:
        return cleared_sequence(memory, info)
    if symbol is None:
        raise VmcoreError("VMCOREINFO does not say where clear_seq is, so nobody knows when the log was cleared")
    # A latch of two values since 5.13 (7d7a23a91c91): an odd count means that the second one is being read.
    if info.size("latched_seq") is None:
        return memory.read_u64(symbol)
    at = info.offset("latched_seq.val")
    if at is None or not 0 < at < _MAX_STRUCT:
        raise VmcoreError("VMCOREINFO has no usable OFFSET(latched_seq.val), so nobody knows when the log was cleared")
    count = int.from_bytes(memory.read(symbol, 4), "little")
    return memory.read_u64(symbol + at + (count & 1) * 8)
