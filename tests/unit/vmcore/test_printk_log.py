# SPDX-License-Identifier: GPL-2.0-or-later
"""Logs of kernels before 5.10, built byte by byte after struct printk_log of linux 5.9."""

from __future__ import annotations

import random
import struct

import pytest

from kdumpd.errors import VmcoreError
from kdumpd.vmcore.kernel_log import read_log
from kdumpd.vmcore.log_clear import clear_sequence
from kdumpd.vmcore.log_record import Record
from kdumpd.vmcore.vmcoreinfo import Vmcoreinfo, parse_vmcoreinfo

# u64 ts_nsec; u16 len; u16 text_len; u16 dict_len; u8 facility; u8 flags:5, level:3
HEADER = struct.Struct("<QHHHBB")
WITH_CALLER = struct.Struct("<QHHHBBI4x")
LOG_BUF, LOG_BUF_LEN, FIRST, NEXT, CLEAR, DATA = 0x1000, 0x1008, 0x100C, 0x1010, 0x1014, 0x2000


class Log:
    """A log buffer of `size` bytes as the kernel fills it, in a memory of 64 KiB."""

    def __init__(self, size: int = 4096, *, caller: bool = False, struct_name: str = "printk_log") -> None:
        self.size, self.caller, self.struct_name = size, caller, struct_name
        self.data = bytearray(size)
        self.first = self.next = self.clear = 0
        self.lengths: list[tuple[int, int]] = []
        self.missing: set[str] = set()

    def add(self, text: bytes, *, time_nsec: int = 1_500_000_000, dictionary: bytes = b"", caller: int = 1) -> None:
        """log_store() of printk.c: makes room from the front, leaves an empty header where the end is too near."""
        shape = WITH_CALLER if self.caller else HEADER
        length = -(-(shape.size + len(text) + len(dictionary)) // 8) * 8
        while self.lengths and not self._has_room(length + shape.size):
            self.lengths.pop(0)
            self.first = self.lengths[0][0] if self.lengths else self.next
        if self.next + length + shape.size > self.size:
            self.data[self.next : self.next + shape.size] = bytes(shape.size)
            self.next = 0
            if not self.lengths:
                self.first = 0
        fields = [time_nsec, length, len(text), len(dictionary), 0, 6 << 5, *([caller] if self.caller else [])]
        record = (shape.pack(*fields) + text + dictionary).ljust(length, b"\0")
        self.data[self.next : self.next + length] = record
        self.lengths.append((self.next, length))
        self.next += length

    def _has_room(self, needed: int) -> bool:
        if self.next > self.first or not self.lengths:
            return max(self.size - self.next, self.first) >= needed
        return self.first - self.next >= needed

    def read(self, vaddr: int, size: int) -> bytes:
        memory = bytearray(1 << 16)
        struct.pack_into("<QIIII", memory, LOG_BUF, DATA, self.size, self.first, self.next, self.clear)
        memory[DATA : DATA + self.size] = self.data
        if vaddr + size > len(memory):
            raise VmcoreError(f"{vaddr:#x} is not mapped")
        return bytes(memory[vaddr : vaddr + size])

    def read_u64(self, vaddr: int) -> int:
        return int.from_bytes(self.read(vaddr, 8), "little")

    def info(self) -> Vmcoreinfo:
        name = self.struct_name
        lines = {
            "SYMBOL(log_buf)": f"{LOG_BUF:x}",
            "SYMBOL(log_buf_len)": f"{LOG_BUF_LEN:x}",
            "SYMBOL(log_first_idx)": f"{FIRST:x}",
            "SYMBOL(log_next_idx)": f"{NEXT:x}",
            "SYMBOL(clear_idx)": f"{CLEAR:x}",
            f"SIZE({name})": str((WITH_CALLER if self.caller else HEADER).size),
            f"OFFSET({name}.ts_nsec)": "0",
            f"OFFSET({name}.len)": "8",
            f"OFFSET({name}.text_len)": "10",
            f"OFFSET({name}.dict_len)": "12",
            **({f"OFFSET({name}.caller_id)": "16"} if self.caller else {}),
        }
        return parse_vmcoreinfo("".join(f"{k}={v}\n" for k, v in lines.items() if k not in self.missing).encode())

    def records(self) -> list[Record]:
        return list(read_log(self, self.info()))


def test_lines_as_dmesg_prints_them() -> None:
    log = Log()
    log.add(b"Linux version 5.4.0", time_nsec=0)
    log.add(b"two\nlines", time_nsec=12_345_678_901, dictionary=b"SUBSYSTEM=pci\0DEVICE=+pci:0000")
    log.add(b"bell \x07 and caf\xc3\xa9")
    assert [line for record in log.records() for line in record.lines()] == [
        "[    0.000000] Linux version 5.4.0",
        "[   12.345678] two",
        "               lines",
        "[    1.500000] bell \\x07 and café",
    ]
    assert [record.sequence for record in log.records()] == [0, 1, 2]


def test_callers() -> None:
    log = Log(caller=True)
    log.add(b"a task", caller=77)
    log.add(b"a cpu", caller=1 << 31 | 3)
    assert [next(record.lines()) for record in log.records()] == [
        "[    1.500000] [   T77] a task",
        "[    1.500000] [    C3] a cpu",
    ]


def test_before_3_11_the_struct_had_another_name() -> None:
    log = Log(struct_name="log")
    log.add(b"old")
    assert [record.text for record in log.records()] == ["old"]


def test_an_empty_log() -> None:
    assert Log().records() == []


@pytest.mark.parametrize("seed", range(20))
def test_a_log_that_went_round_many_times(seed: int) -> None:
    chance = random.Random(seed)
    log = Log(size=1024)
    said: list[str] = []
    for number in range(chance.randrange(1, 200)):
        text = f"{number} " + "x" * chance.randrange(120)
        said.append(text)
        log.add(text.encode())
    found = [record.text for record in log.records()]
    assert len(found) == len(log.lengths)
    assert found == said[-len(found) :]


def test_since_the_last_clearing() -> None:
    log = Log()
    log.add(b"before")
    log.clear = log.next
    assert clear_sequence(log, log.info()) == 1
    log.add(b"after")
    assert clear_sequence(log, log.info()) == 1
    log.clear = 3333
    assert clear_sequence(log, log.info()) == 0


def test_a_record_that_leads_to_itself_ends_the_log() -> None:
    log = Log()
    log.add(b"good")
    log.add(b"bad")
    struct.pack_into("<H", log.data, log.lengths[1][0] + 8, 0)
    found = read_log(log, log.info())
    assert next(found).text == "good"
    with pytest.raises(VmcoreError, match="the log is damaged at 0x18"):
        next(found)


@pytest.mark.parametrize("seed", range(300))
def test_damage_ends_in_a_sentence_and_soon(seed: int) -> None:
    chance = random.Random(seed)
    log = Log(size=512)
    for number in range(40):
        log.add(b"%d" % number)
    for _ in range(chance.randrange(1, 6)):
        log.data[chance.randrange(512)] = chance.randrange(256)
    if chance.random() < 0.3:
        log.first = chance.randrange(600)
    if chance.random() < 0.3:
        log.next = chance.randrange(600)
    count = 0
    try:
        for _ in read_log(log, log.info()):
            count += 1
    except VmcoreError as error:
        assert error.sentence
    assert count <= 512 // HEADER.size


@pytest.mark.parametrize(
    "key",
    ["SYMBOL(log_buf)", "SYMBOL(log_buf_len)", "SYMBOL(log_first_idx)", "SIZE(printk_log)", "OFFSET(printk_log.len)"],
)
def test_a_key_that_is_missing_is_named(key: str) -> None:
    log = Log()
    log.add(b"text")
    log.missing = {key}
    with pytest.raises(VmcoreError, match="VMCOREINFO has n"):
        log.records()
