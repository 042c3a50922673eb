# SPDX-License-Identifier: GPL-2.0-or-later
"""Dumps against the checksums of their manifest: one byte is enough."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from fake_machine import FakeMachine

from kdumpd.crashes.index import Crash, read_crash
from kdumpd.crashes.verify import verify
from kdumpd.dumpfile.manifest import FileRecord, Region

DATA = b"KDUMP   " + bytes(4096)  # as FakeMachine.crash writes it


def regions(*sizes: int) -> tuple[Region, ...]:
    found, at = [], 0
    for size in sizes:
        found.append(Region(offset=at, size_bytes=size, sha256=hashlib.sha256(DATA[at : at + size]).hexdigest()))
        at += size
    return tuple(found)


def made(machine: FakeMachine, **changes: object) -> Path:
    record = FileRecord(name="vmcore", size_bytes=len(DATA), regions=regions(100, len(DATA) - 100))
    return machine.crash("a", **{"dump": record, **changes})


def read(folder: Path) -> Crash:
    crash = read_crash(folder)
    assert crash is not None
    return crash


def test_a_whole_dump(machine: FakeMachine) -> None:
    assert verify(read(made(machine))) is None


@pytest.mark.parametrize("at", [0, 99, 100, len(DATA) - 1])
def test_one_byte_is_enough(machine: FakeMachine, at: int) -> None:
    folder = made(machine)
    data = bytearray(DATA)
    data[at] ^= 1
    (folder / "vmcore").write_bytes(data)
    problem = verify(read(folder))
    assert problem is not None
    assert f"bytes {0 if at < 100 else 100} to" in problem


def test_a_whole_file_checksum_and_the_log(machine: FakeMachine) -> None:
    log = b"[    1.0] Kernel panic - not syncing: sysrq triggered crash\n"
    whole = FileRecord(name="vmcore", size_bytes=len(DATA), sha256=hashlib.sha256(DATA).hexdigest())
    entry = FileRecord(name="vmcore-dmesg.txt", size_bytes=len(log), sha256=hashlib.sha256(log).hexdigest())
    folder = made(machine, dump=whole, log=entry)
    assert verify(read(folder)) is None
    (folder / "vmcore-dmesg.txt").write_bytes(log[:-1] + b"!")
    assert verify(read(folder)) == "vmcore-dmesg.txt is not what was written: its checksum differs"


@pytest.mark.parametrize(
    ("parts", "words"), [((100,), "end at byte 100"), ((), None)], ids=["the end is missing", "no checksum at all"]
)
def test_checksums_that_do_not_cover_the_file(machine: FakeMachine, parts: tuple[int, ...], words: str | None) -> None:
    problem = verify(read(made(machine, dump=FileRecord(name="vmcore", size_bytes=len(DATA), regions=regions(*parts)))))
    assert (problem is None) if words is None else (problem is not None and words in problem)


def test_a_gap_between_the_checksums(machine: FakeMachine) -> None:
    second = Region(offset=200, size_bytes=len(DATA) - 200, sha256="0" * 64)
    record = FileRecord(name="vmcore", size_bytes=len(DATA), regions=(*regions(100), second))
    assert "gap at byte 100" in (verify(read(made(machine, dump=record))) or "")


def test_a_file_that_went_away_or_became_a_link(machine: FakeMachine) -> None:
    crash = read(made(machine))
    (crash.path / "vmcore").rename(crash.path / "elsewhere")
    (crash.path / "vmcore").symlink_to("elsewhere")
    assert "cannot be read" in (verify(crash) or "")
    (crash.path / "manifest.json").unlink()
    assert verify(read(crash.path)) is not None
