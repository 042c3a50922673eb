# SPDX-License-Identifier: GPL-2.0-or-later
"""After a crash was found: programs run once, and a dump that is not what was written is told."""

from __future__ import annotations

import io

from bus_bench import wait
from fake_machine import FakeMachine

from kdumpd.crashes.index import read_crash
from kdumpd.dumpfile.manifest import FileRecord
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
    assert said.read_text() == "one\ntwo\n"
    assert journal.getvalue().count("What is to be run for crash") == 2
