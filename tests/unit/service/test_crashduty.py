# SPDX-License-Identifier: GPL-2.0-or-later
"""After a crash was found: programs run once, and a dump that is not what was written is told."""

from __future__ import annotations

import io
import os
import threading

import pytest
from bus_bench import wait
from fake_machine import FakeMachine

from kdumpd.crashes.index import Crash, read_crash
from kdumpd.dumpfile.manifest import FileRecord
from kdumpd.service import crashduty
from kdumpd.service.crashduty import CrashDuty
from kdumpd.service.journal import Journal
from kdumpd.service.places import Places


def test_programs_and_checksums(machine: FakeMachine) -> None:
    said = machine.root / "said"
    machine.write("etc/kdumpd/on-crash.d/hook", f'#!/bin/sh\necho "$KDUMPD_CRASH" >>{said}\nexit 1\n')
    (machine.root / "etc/kdumpd/on-crash.d/hook").chmod(0o755)
    journal = io.StringIO()
    duty = CrashDuty(Places.below(machine.root), Journal(journal))
    for name in ("one", "two"):
        record = FileRecord(name="vmcore", size_bytes=4104, sha256="ab" * 32)
        crash = read_crash(machine.crash(name, dump=record))
        assert crash is not None
        duty.add(crash)
    wait(lambda: journal.getvalue().count("its checksum differs") == 2, "the checks", 30)
    wait(lambda: said.exists() and said.read_text() == "one\ntwo\n", "the programs", 30)
    wait(lambda: journal.getvalue().count("What is to be run for crash") == 2, "their failures", 30)
    assert journal.getvalue().count("What is to be run for crash") == 2


def test_programs_do_not_wait_for_the_check_of_an_earlier_dump(
    machine: FakeMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A crash is found once: a service that ends during the check would take the call away."""
    said, checked = machine.root / "said", threading.Event()
    monkeypatch.setattr(crashduty, "verify", lambda crash: checked.wait(60) and None)  # a dump as large as the disk
    machine.write("etc/kdumpd/on-crash.d/hook", f'#!/bin/sh\necho "$KDUMPD_CRASH" >>{said}\n')
    os.chmod(machine.root / "etc/kdumpd/on-crash.d/hook", 0o755)
    duty = CrashDuty(Places.below(machine.root), Journal(io.StringIO()))
    for name in ("one", "two"):
        crash = read_crash(machine.crash(name))
        assert crash is not None
        duty.add(crash)
    wait(lambda: said.exists() and said.read_text() == "one\ntwo\n", "the programs", 30)
    checked.set()


def test_a_fault_of_ours_takes_only_its_own_crash_along(machine: FakeMachine, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def check(crash: Crash) -> None:
        seen.append(crash.name)
        if crash.name == "one":
            raise ZeroDivisionError

    monkeypatch.setattr(crashduty, "verify", check)
    duty = CrashDuty(Places.below(machine.root), Journal(io.StringIO()))
    for name in ("one", "two", "three"):
        crash = read_crash(machine.crash(name))
        assert crash is not None
        duty.add(crash)
        wait(lambda name=name: name in seen, f"the check of {name}", 30)
    assert seen == ["one", "two", "three"]
