# SPDX-License-Identifier: GPL-2.0-or-later
"""Bursts of events: how soon there is a look, and that there is one act."""

from __future__ import annotations

import itertools

from kdumpd.service.pace import Due, Pace


def _play(events: list[float]) -> list[tuple[float, Due]]:
    """What is done and when, given the times of events."""
    pace, done, pending = Pace(), [], sorted(events)
    while pending or pace.next_at() is not None:
        due_at = pace.next_at()
        if pending and (due_at is None or pending[0] < due_at):
            pace.note(pending.pop(0))
            continue
        assert due_at is not None
        due = pace.take(due_at)
        assert due is not Due.NOTHING
        done.append((round(due_at, 3), due))
    return done


def test_one_event_is_looked_at_soon_and_acted_upon_when_it_is_quiet() -> None:
    assert _play([10.0]) == [(10.2, Due.LOOK), (11.0, Due.ACT)]


def test_512_events_within_a_second_are_one_act() -> None:
    done = _play([index / 512 for index in range(512)])
    assert [due for _, due in done].count(Due.ACT) == 1
    assert done[-1][0] < 2.1


def test_a_storm_without_end_is_looked_at_each_second_and_acted_upon_every_five() -> None:
    done = _play([index / 10 for index in range(201)])
    acts = [at for at, due in done if due is Due.ACT]
    assert acts[0] == 5.0
    assert all(later - earlier <= 5.2 for earlier, later in itertools.pairwise(acts))
    moments = [at for at, _ in done]
    assert all(later - earlier <= 1.2 for earlier, later in itertools.pairwise(moments))
    assert len(done) < 30


def test_nothing_is_due_without_events() -> None:
    pace = Pace()
    assert pace.next_at() is None
    assert pace.take(1e9) is Due.NOTHING
    pace.note(0.0)
    assert pace.take(0.1) is Due.NOTHING
    assert pace.take(7.0) is Due.ACT
    assert pace.next_at() is None
