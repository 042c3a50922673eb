# SPDX-License-Identifier: GPL-2.0-or-later
"""The report on targets, and when they are tried. A trial itself is in tests/service/test_reach.py."""

from __future__ import annotations

import dataclasses
import io
import json
import time
from pathlib import Path

import pytest
from fake_machine import FakeMachine

from kdumpd.config.parse import read_config
from kdumpd.service import reach as reaching
from kdumpd.service.journal import Journal
from kdumpd.service.places import Places
from kdumpd.service.reach import Reach
from kdumpd.service.tried import FAILED, REPORT_NAME, WORKS, TriedTarget, read_tried

GOOD = TriedTarget(target="a@b", result=WORKS, time_usec=1, free_bytes=1 << 30)
BAD = TriedTarget(target="c@d", result=FAILED, time_usec=2, sentence="No route", hint="look")


def write(folder: Path, *tried: TriedTarget, **changes: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    listed = [{**dataclasses.asdict(one), **changes} for one in tried]
    (folder / REPORT_NAME).write_text(json.dumps({"targets": listed}))


def test_only_targets_that_are_still_named_count(tmp_path: Path) -> None:
    write(tmp_path, GOOD, BAD)
    assert read_tried(tmp_path, {"a@b", "c@d"}) == (GOOD, BAD)
    assert read_tried(tmp_path, {"c@d"}) == (BAD,)
    assert read_tried(tmp_path / "none", {"c@d"}) == ()


@pytest.mark.parametrize(
    "change", [{"target": 1}, {"result": "fine"}, {"sentence": None}, {"time_usec": "x"}, {"free_bytes": True}]
)
def test_nonsense_counts_for_nothing(change: dict[str, object], tmp_path: Path) -> None:
    write(tmp_path, GOOD, **change)
    assert read_tried(tmp_path, {"a@b"}) == ()
    (tmp_path / REPORT_NAME).write_text('{"targets": [1, null, {}]}')
    assert read_tried(tmp_path, {"a@b"}) == ()


class Trials:
    """A Reach whose trials are only counted; the report is what the test writes."""

    def __init__(self, machine: FakeMachine, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        self.now = 1000.0
        self.places = Places.below(machine.root)
        self.machine = machine
        self.reach = Reach(self.places, Journal(io.StringIO()), units=False)
        monkeypatch.setattr(self.reach, "_trial", self._trial)
        monkeypatch.setattr(reaching.time, "monotonic", lambda: self.now)

    def _trial(self) -> str:
        self.count += 1
        return ""

    def note(self, image_id: str = "i") -> None:
        self.reach.note(read_config(self.machine.root), image_id)

    def after(self, seconds: float) -> int:
        """How many trials there were when so much time has gone by."""
        self.now += seconds
        self.reach.tick()
        for _ in range(1000):
            if not self.reach._running:
                break
            time.sleep(0.005)
        return self.count


@pytest.fixture
def trials(machine: FakeMachine, monkeypatch: pytest.MonkeyPatch) -> Trials:
    machine.config("ssh root@192.0.2.1\npath /dumps\n")
    return Trials(machine, monkeypatch)


def test_without_a_target_on_the_network_nothing_is_tried(trials: Trials) -> None:
    trials.machine.config("path /var/crash\n")
    trials.note()
    assert trials.after(10 * 3600) == 0


def test_every_six_hours_and_after_changes(trials: Trials) -> None:
    trials.note()
    assert trials.after(0) == 1
    assert trials.after(30) == 1
    assert trials.after(5.9 * 3600) == 1
    assert trials.after(0.1 * 3600) == 2
    trials.note("another image")
    assert trials.after(30) == 3
    trials.machine.config("ssh root@192.0.2.2\npath /dumps\n")
    trials.note("another image")
    assert trials.after(30) == 4
    # A file that cannot be used says nothing about targets.
    trials.machine.config("path /a\npath /b\nfinal_action dance\n")
    trials.note("another image")
    assert trials.after(30) == 4
    trials.reach.hint()
    assert trials.after(5) == 4
    assert trials.after(30) == 5


def test_after_a_failure_sooner_but_ever_more_rarely(trials: Trials) -> None:
    name = str(read_config(trials.machine.root).targets[0])
    write(trials.places.run_dir, dataclasses.replace(BAD, target=name))
    trials.note()
    assert trials.after(0) == 1
    times = []
    for _ in range(2 * 3600 // 30):
        if trials.after(30) > len(times) + 1:
            times.append(trials.now - 1000)
    assert times == [60, 180, 420, 900, 1860, 3780]
    write(trials.places.run_dir, dataclasses.replace(GOOD, target=name))
    before = trials.count
    trials.after(3600)
    assert trials.count == before + 1
    assert trials.after(3600) == before + 1


def test_a_hint_that_comes_during_a_trial_is_followed_by_another_one(
    trials: Trials, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What that trial found may be older than what the hint tells of."""

    def hinted() -> str:
        trials.count += 1
        if trials.count == 1:
            trials.reach.hint(0.0)
        return ""

    monkeypatch.setattr(trials.reach, "_trial", hinted)
    trials.note()
    assert trials.after(0) == 1
    assert trials.after(1) == 2
    assert trials.after(30) == 2
