# SPDX-License-Identifier: GPL-2.0-or-later
"""The printk ring buffer: what it looks like when it is whole, wrapped, filled to the byte, or damaged."""

from __future__ import annotations

import dataclasses
import random
import struct

import pytest

from kdumpd.errors import VmcoreError
from kdumpd.vmcore.kernel_log import panic_line, read_log
from kdumpd.vmcore.vmcoreinfo import parse_vmcoreinfo

BASE = 0x1000
DESCS, INFOS, TEXT = 0x2000, 0x4000, 0x8000
COUNT_BITS, SIZE_BITS = 3, 8
COUNT, SIZE = 1 << COUNT_BITS, 1 << SIZE_BITS
INFO = parse_vmcoreinfo(
    b"SYMBOL(prb)=100\nSIZE(prb_desc)=24\nSIZE(printk_info)=88\n"
    b"OFFSET(printk_ringbuffer.desc_ring)=0\nOFFSET(printk_ringbuffer.text_data_ring)=48\n"
    b"OFFSET(prb_desc_ring.count_bits)=0\nOFFSET(prb_desc_ring.descs)=8\nOFFSET(prb_desc_ring.infos)=16\n"
    b"OFFSET(prb_desc_ring.head_id)=24\nOFFSET(prb_desc_ring.tail_id)=32\n"
    b"OFFSET(prb_desc.state_var)=0\nOFFSET(prb_desc.text_blk_lpos)=8\n"
    b"OFFSET(prb_data_blk_lpos.begin)=0\nOFFSET(prb_data_blk_lpos.next)=8\n"
    b"OFFSET(printk_info.seq)=0\nOFFSET(printk_info.ts_nsec)=8\nOFFSET(printk_info.text_len)=16\n"
    b"OFFSET(printk_info.caller_id)=20\nOFFSET(prb_data_ring.size_bits)=0\nOFFSET(prb_data_ring.data)=8\n"
    b"OFFSET(atomic_long_t.counter)=0\n"
)
START = (1 << 62) - 3  # ids begin near their wrap, as the kernel's do


class Ring:
    """A ring buffer in a flat memory, written as printk writes it."""

    def __init__(self, *, perfect_fit: bool) -> None:
        self.memory = bytearray(TEXT + SIZE)
        self.next_id = START
        self.at = 0
        self.perfect_fit = perfect_fit
        self.records: list[str] = []
        struct.pack_into("<Q", self.memory, 0x100, BASE)
        struct.pack_into("<IxxxxQQ", self.memory, BASE, COUNT_BITS, DESCS, INFOS)
        struct.pack_into("<IxxxxQ", self.memory, BASE + 48, SIZE_BITS, TEXT)

    def read(self, vaddr: int, size: int) -> bytes:
        if vaddr + size > len(self.memory):
            raise VmcoreError("not mapped")
        return bytes(self.memory[vaddr : vaddr + size])

    def read_u64(self, vaddr: int) -> int:
        return int.from_bytes(self.read(vaddr, 8), "little")

    def add(self, text: str, *, state: int = 2, caller: int = 0, lpos: tuple[int, int] | None = None) -> None:
        number = self.next_id & (1 << 62) - 1
        self.next_id += 1
        begin = self.at
        need = 8 + (len(text) + 7 & ~7)
        end = begin + need
        fits = (end - 1 if self.perfect_fit else end) // SIZE == begin // SIZE
        where = begin % SIZE
        if lpos is not None:
            begin, end = lpos
        else:
            if not fits:
                where = 0
                end = (begin // SIZE + 1) * SIZE + need
            struct.pack_into("<Q", self.memory, TEXT + where, number)
            self.memory[TEXT + where + 8 : TEXT + where + 8 + len(text)] = text.encode()
            self.at = end
        index = number % COUNT
        struct.pack_into("<QQQ", self.memory, DESCS + index * 24, number | state << 62, begin, end)
        struct.pack_into("<QQHxxI", self.memory, INFOS + index * 88, number, 1_500_000_000, len(text), caller)
        self.records.append(text)
        struct.pack_into(
            "<QQ", self.memory, BASE + 24, number, (self.next_id - min(len(self.records), COUNT)) & (1 << 62) - 1
        )

    def texts(self) -> list[str]:
        return [record.text for record in read_log(self, INFO)]


@pytest.mark.parametrize("perfect_fit", [False, True], ids=["before-6.19", "since-6.19"])
@pytest.mark.parametrize("seed", range(20))
def test_the_newest_records_are_read_whole(seed: int, perfect_fit: bool) -> None:
    chance = random.Random(seed)
    ring = Ring(perfect_fit=perfect_fit)
    for number in range(60):
        ring.add(f"{number:03d} " + "x" * chance.randrange(20))
        # 8 records of at most 32 bytes always fit into the 256 bytes of text but for what a wrap wastes.
        assert ring.texts()[-7:] == ring.records[-7:]


def test_a_record_that_ends_with_the_ring(tmp_path: object) -> None:
    ring = Ring(perfect_fit=True)
    for _ in range(7):
        ring.add("x" * 24)
    ring.add("y" * 24)
    assert ring.at == SIZE
    assert ring.texts()[-1] == "y" * 24


def test_blank_lines_lost_records_and_unfinished_ones() -> None:
    ring = Ring(perfect_fit=True)
    ring.add("first")
    ring.add("", lpos=(3, 3))
    ring.add("lost", lpos=(1, 1))
    ring.add("unfinished", state=0)
    ring.add("reused", state=3)
    ring.add("last", state=1)
    assert ring.texts() == ["first", "", "last"]


def test_lines_as_dmesg_prints_them() -> None:
    ring = Ring(perfect_fit=True)
    ring.add("one\ntwo", caller=0)
    ring.add("bad \x1b[31m\x07", caller=1 << 31 | 3)
    first, second = list(read_log(ring, INFO))
    assert list(first.lines()) == ["[    1.500000] [    T0] one", " " * 24 + "two"]
    assert list(second.lines()) == ["[    1.500000] [    C3] bad \\x1b[31m\\x07"]


def test_without_callers_there_is_no_column_for_them() -> None:
    ring = Ring(perfect_fit=True)
    ring.add("one")
    assert [line for record in read_log(ring, INFO) for line in record.lines()] == ["[    1.500000] one"]


@pytest.mark.parametrize("seed", range(200))
def test_a_damaged_ring_ends_in_records_or_one_sentence(seed: int) -> None:
    chance = random.Random(seed)
    ring = Ring(perfect_fit=True)
    for number in range(12):
        ring.add(f"record {number}")
    for _ in range(8):
        at = chance.choice([chance.randrange(BASE, BASE + 72), chance.randrange(DESCS, DESCS + 200), 0x100])
        ring.memory[at] = chance.randrange(256)
    try:
        assert len(ring.texts()) <= COUNT or struct.unpack_from("<I", ring.memory, BASE)[0] != COUNT_BITS
    except VmcoreError as error:
        assert str(error)


@pytest.mark.parametrize("seed", range(300))
def test_odd_values_in_vmcoreinfo_end_in_records_or_one_sentence(seed: int) -> None:
    chance = random.Random(seed)
    ring = Ring(perfect_fit=True)
    for number in range(12):
        ring.add(f"record {number}")
    key = chance.choice(sorted(INFO.values))
    value = chance.choice([-1, 0, 1, 4, 23, 87, 4095, 1 << 20, 1 << 63, chance.randrange(200)])
    try:
        list(read_log(ring, dataclasses.replace(INFO, values={**INFO.values, key: value})))
    except VmcoreError as error:
        assert str(error)


def test_a_kernel_without_ring_is_named() -> None:
    with pytest.raises(VmcoreError, match="neither SYMBOL\\(prb\\) nor"):
        read_log(Ring(perfect_fit=True), parse_vmcoreinfo(b""))


def test_the_line_that_says_why() -> None:
    log = ["[ 1.0] BUG: kernel NULL pointer", "[ 2.0] Kernel panic - not syncing: Fatal exception", "[ 3.0] ---[ end"]
    assert panic_line(log) == "Kernel panic - not syncing: Fatal exception"
    assert panic_line(log[:1]) == "BUG: kernel NULL pointer"
    assert panic_line(["[ 1.0] all is well"]) is None
