# SPDX-License-Identifier: GPL-2.0-or-later
"""A crash that left no dump is said, once and truly; one that left one is not."""

from __future__ import annotations

import os

import pytest
from engine_bench import Bench
from fake_machine import BOOT_ID, FakeMachine

from kdumpd.crashes.index import read_crash
from kdumpd.loader.crash import log_line
from kdumpd.service.missed import crash_of, leave_tag, read_tag

EARLIER = "99999999-0000-0000-0000-000000000000"


def panic(machine: FakeMachine, seconds: int = 1_700_000_000) -> None:
    machine.write("sys/fs/pstore/dmesg-ramoops-0", "Panic#1 Part1\n<0>[ 1.0] Kernel panic\n")
    os.utime(machine.root / "sys/fs/pstore/dmesg-ramoops-0", (seconds, seconds))


def reboot(bench: Bench, boot_id: str) -> None:
    """A new boot: the run folder is empty, nothing is loaded."""
    bench.machine.write("proc/sys/kernel/random/boot_id", boot_id + "\n")
    for path in (bench.machine.root / "run/kdumpd").glob("*.json"):
        path.unlink()
    bench.machine.crash_loaded(False)
    bench.journal.truncate(0)
    bench.restart()
    bench.engine.check()


def said(bench: Bench) -> int:
    return sum("no dump of it is here" in line for line in bench.lines())


@pytest.fixture
def lived(bench: Bench) -> Bench:
    """A service that has seen one boot, with nothing in it."""
    bench.engine.check()
    return bench


def test_a_test_crash_without_a_dump(lived: Bench) -> None:
    leave_tag(lived.machine.root / "var/lib/kdumpd", BOOT_ID)
    lived.engine.check()
    assert said(lived) == 0  # the tag is for the next boot
    reboot(lived, EARLIER)
    assert said(lived) == 1
    assert "crash-without-dump" in lived.codes()
    assert lived.rung == "loaded"
    lived.restart()
    lived.engine.check()
    assert said(lived) == 1
    assert "crash-without-dump" in lived.codes()
    reboot(lived, "88888888-0000-0000-0000-000000000000")
    assert said(lived) == 0
    assert "crash-without-dump" not in lived.codes()


@pytest.mark.parametrize("evidence", ["tag", "pstore", "both"])
def test_a_crash_with_a_dump_is_not_missed(lived: Bench, evidence: str) -> None:
    if evidence != "pstore":
        leave_tag(lived.machine.root / "var/lib/kdumpd", BOOT_ID)
    if evidence != "tag":
        panic(lived.machine)
    lived.machine.crash("host-20260101T000000Z")
    reboot(lived, EARLIER)
    assert said(lived) == 0
    assert "crash-without-dump" not in lived.codes()


def test_pstore_without_a_dump_is_said_once(lived: Bench) -> None:
    panic(lived.machine)
    reboot(lived, EARLIER)
    assert said(lived) == 1
    assert "2023-11-14 22:13:20 UTC" in lived.journal.getvalue()
    reboot(lived, "88888888-0000-0000-0000-000000000000")  # the record is still there
    assert said(lived) == 0


def test_a_dump_that_comes_into_sight_later_settles_it(lived: Bench) -> None:
    panic(lived.machine)
    reboot(lived, EARLIER)
    lived.machine.crash("host-20260101T000000Z")
    lived.engine.check()
    assert "crash-without-dump" not in lived.codes()


def test_panics_and_strangers_from_before_the_first_start_are_history(bench: Bench) -> None:
    panic(bench.machine)
    old = bench.machine.crash("127.0.0.1-2024-01-01-00:00:00")
    (old / "manifest.json").unlink()
    bench.machine.crash("host-20260101T000000Z")
    bench.engine.check()
    assert said(bench) == 0
    told = [line for line in bench.lines() if "was captured" in line]
    assert len(told) == 1
    assert "host-20260101T000000Z" in told[0]


def test_a_folder_that_cannot_be_seen_proves_nothing(lived: Bench) -> None:
    leave_tag(lived.machine.root / "var/lib/kdumpd", BOOT_ID)
    lived.machine.crash("host-20260101T000000Z")
    hidden = lived.machine.root / "var/hidden"
    (lived.machine.root / "var/crash").rename(hidden)
    reboot(lived, EARLIER)
    assert said(lived) == 0
    hidden.rename(lived.machine.root / "var/crash")
    lived.engine.check()
    assert said(lived) == 0
    assert "crash-without-dump" not in lived.codes()


def test_a_full_disk_does_not_make_a_crash_new_again(lived: Bench) -> None:
    seen = lived.machine.root / "var/lib/kdumpd/seen.json"
    seen.unlink()
    seen.mkdir()  # so that it can be neither read nor replaced
    lived.machine.crash("host-20260101T000000Z")
    lived.engine.check()
    lived.machine.crash("host-20260102T000000Z")
    lived.engine.check()
    told = [line for line in lived.lines() if "was captured" in line]
    assert [line.count("host-20260101") for line in told] == [1, 0]


@pytest.mark.parametrize("before", [0, (64 << 10) - 20, (128 << 10) - 1, 300_000])
def test_the_log_that_names_the_test_is_found_in_a_long_log(lived: Bench, before: int) -> None:
    """It is read in pieces, and the words may lie across two of them."""
    state_dir = lived.machine.root / "var/lib/kdumpd"
    leave_tag(state_dir, EARLIER)
    tag = read_tag(state_dir, BOOT_ID)
    assert tag is not None
    ours = lived.machine.crash("host-20260101T000000Z")
    (ours / "vmcore-dmesg.txt").write_text("x" * before + log_line(tag.id) + "\n" + "y" * 100_000)
    lived.machine.crash("host-20260101T000001Z")
    fresh = [crash for name in sorted(os.listdir(ours.parent)) if (crash := read_crash(ours.parent / name)) is not None]
    found = crash_of(tag, fresh)
    assert found is not None
    assert found.name == ours.name
