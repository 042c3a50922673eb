# SPDX-License-Identifier: GPL-2.0-or-later
"""Old dumps go when that is asked for; the newest complete one never does."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from fake_machine import FakeMachine
from hypothesis import given
from hypothesis import strategies as st

from kdumpd.config.model import Config
from kdumpd.crashes import on_crash
from kdumpd.crashes.index import Crash, Standing
from kdumpd.crashes.retention import expired, remove
from kdumpd.dumpfile.manifest import Manifest, Result
from kdumpd.errors import TargetError

DAY = 24 * 3600 * 1_000_000
NOW = 100 * DAY
MANIFEST = Manifest(
    result=Result.COMPLETE, hostname="h", kernel="6.1", started_usec=0, finished_usec=0, kdumpd_version="0"
)


def crash(day: int, standing: Standing = Standing.COMPLETE, *, ours: bool = True) -> Crash:
    return Crash(
        name=str(day),
        path=Path(f"/c/{day}"),
        standing=standing,
        time_usec=day * DAY,
        manifest=MANIFEST if ours else None,
    )


def gone(crashes: list[Crash], **settings: int) -> list[str]:
    return [each.name for each, _ in expired(crashes, Config(**settings), NOW)]  # type: ignore[arg-type]  # by name


def test_without_a_directive_nothing_goes() -> None:
    assert gone([crash(day) for day in range(50)]) == []


def test_by_number_and_by_age() -> None:
    crashes = [crash(day) for day in (10, 50, 95, 99)]
    assert gone(crashes, keep_crashes=3) == ["10"]
    assert gone(crashes, keep_crashes=1) == ["10", "50", "95"]
    assert gone(crashes, keep_days=7) == ["10", "50"]
    assert gone(crashes, keep_crashes=2, keep_days=60) == ["10", "50"]


def test_the_newest_complete_dump_stays_however_old_it_is() -> None:
    crashes = [crash(1), crash(2), crash(98, Standing.INCOMPLETE), crash(99, Standing.LOG_ONLY)]
    assert gone(crashes, keep_crashes=1) == ["1", "98"]
    assert gone(crashes, keep_days=7) == ["1"]


def test_what_has_no_manifest_is_nobodys_to_remove() -> None:
    assert gone([crash(1, Standing.INTERRUPTED, ours=False), crash(99)], keep_crashes=1, keep_days=1) == []


@given(
    st.lists(st.tuples(st.integers(0, 100), st.sampled_from(Standing), st.booleans()), max_size=12),
    st.integers(1, 12),
    st.integers(1, 100),
)
def test_one_complete_dump_always_stays(facts: list[tuple[int, Standing, bool]], number: int, days: int) -> None:
    crashes = [
        dataclasses.replace(crash(day, standing, ours=ours), name=str(number))
        for number, (day, standing, ours) in enumerate(sorted(facts, key=lambda fact: fact[0]))
    ]
    left = [each for each in crashes if each.name not in gone(crashes, keep_crashes=number, keep_days=days)]
    complete = [each for each in crashes if each.standing is Standing.COMPLETE]
    if complete:
        assert complete[-1] in left
    assert all(each in left for each in crashes if each.manifest is None)


def test_a_new_crash_takes_the_old_ones_away(machine: FakeMachine, capfd: pytest.CaptureFixture[str]) -> None:
    machine.config("keep_crashes 2\n")
    folders = [machine.crash(name) for name in ("a", "b", "c")]
    assert on_crash.main(["--root", str(machine.root), "--", "c"]) == 0
    left = [folder for folder in folders if folder.exists()]
    assert len(left) == 2
    (lost,) = set(folders) - set(left)
    assert f"the dump in {lost} was removed (keep_crashes 2)" in capfd.readouterr().err


def test_a_folder_that_cannot_be_removed_is_said(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="cannot be removed: No such file"):
        remove(Crash(name="x", path=tmp_path / "x", standing=Standing.COMPLETE, time_usec=0))
