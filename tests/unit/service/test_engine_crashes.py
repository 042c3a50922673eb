# SPDX-License-Identifier: GPL-2.0-or-later
"""kdumpd.service.engine and the crashes that arrive: what they prove, and how they are told."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from engine_bench import Bench

from kdumpd.dumpfile.manifest import Result


def test_a_capture_by_this_very_image_proves_it(bench: Bench) -> None:
    bench.engine.check()
    bench.machine.crash("host-20260101T000000Z", image_id="another")
    bench.engine.check()
    assert bench.rung == "loaded"
    folder = bench.machine.crash("host-20260101T000001Z", image_id=bench.machine.image_id())
    bench.engine.check()
    assert bench.rung == "proven"
    assert bench.codes() == []
    (folder / "vmcore").write_bytes(b"cut")
    (folder.parent / "touch").mkdir()
    bench.engine.check()
    assert bench.rung == "loaded"


def test_an_incomplete_capture_proves_nothing(bench: Bench) -> None:
    bench.engine.check()
    bench.machine.crash("a", image_id=bench.machine.image_id(), result=Result.INCOMPLETE, reason="disk full")
    bench.engine.check()
    assert bench.rung == "loaded"


def test_each_crash_is_told_once(bench: Bench) -> None:
    bench.engine.check()
    bench.machine.crash("host-20260101T000000Z")
    cut = bench.machine.crash("host-20260102T000000Z")
    (cut / "manifest.json").unlink()
    bench.engine.check()
    bench.restart()
    bench.engine.check()
    told = [line for line in bench.lines() if "was captured" in line]
    assert len(told) == 2
    assert "sysrq triggered crash" in told[0]
    assert any("interrupted" in line for line in told)
    bench.machine.crash("host-20260103T000000Z")
    bench.engine.check()
    assert sum("was captured" in line for line in bench.lines()) == 3


def test_a_log_that_went_ahead_of_its_dump_is_no_other_crash(bench: Bench) -> None:
    bench.engine.check()
    bench.machine.crash("host-20260101T000000Z", result=Result.LOG_ONLY, reason="the first target did not answer")
    dump = bench.machine.crash("host-20260101T000000Z-2")
    bench.engine.check()
    assert sum("was captured" in line for line in bench.lines()) == 1
    shutil.rmtree(dump)
    bench.engine.check()
    bench.restart()
    bench.engine.check()
    assert sum("was captured" in line for line in bench.lines()) == 1


def test_hostile_panic_lines_do_not_reach_the_journal_raw(bench: Bench) -> None:
    bench.machine.crash("a", panic="\x1b[2J\nMESSAGE=gotcha")
    bench.engine.check()
    assert "\x1b" not in bench.journal.getvalue()
    assert all(line.startswith("<") for line in bench.lines())


def test_a_crash_folder_that_is_a_link_is_not_followed(bench: Bench, tmp_path: Path) -> None:
    elsewhere = bench.machine.crash("real", image_id="x")
    (bench.machine.root / "var/crash/link").symlink_to(elsewhere)
    bench.engine.check()
    assert sum("was captured" in line for line in bench.lines()) == 1


def test_two_crashes_of_the_same_moment_are_both_found(bench: Bench) -> None:
    """The time of the folder is no newer for the second one: clocks of filesystems take steps."""
    folder = bench.machine.root / "var/crash"
    bench.machine.crash("host-20260101T000000Z")
    moment = folder.stat().st_mtime_ns
    bench.engine.check()
    bench.machine.crash("host-20260101T000001Z")
    os.utime(folder, ns=(moment, moment))
    bench.engine.check()
    assert sum("was captured" in line for line in bench.lines()) == 2
