# SPDX-License-Identifier: GPL-2.0-or-later
"""The engine's thread: what it is told, it does; and it does not end."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from collections.abc import Set as AbstractSet

import pytest
from bus_bench import wait

from kdumpd.service.pace import Due
from kdumpd.service.worker import Worker


class _Heard:
    def __init__(self) -> None:
        self.dues: list[tuple[Due, AbstractSet[str]]] = []
        self.worker = Worker(lambda due, kinds: self.dues.append((due, kinds)))


@pytest.fixture
def heard() -> Iterator[_Heard]:
    found = _Heard()
    found.worker.start()
    yield found
    found.worker.stop(5)


def test_changes_from_many_threads_become_one_act(heard: _Heard) -> None:
    threads = [threading.Thread(target=lambda: [heard.worker.changed("memory") for _ in range(100)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    wait(lambda: Due.ACT in [due for due, _ in heard.dues], "an act")
    for thread in threads:
        thread.join()
    # How many looks come before it depends on when the threads get a processor.
    *looks, act = [due for due, _ in heard.dues]
    assert act is Due.ACT
    assert set(looks) <= {Due.LOOK}
    assert len(looks) <= 2
    assert heard.dues[0][1] == {"memory"}


def test_a_fault_in_a_job_does_not_end_the_thread(heard: _Heard, caplog: pytest.LogCaptureFixture) -> None:
    done = threading.Event()
    heard.worker.do(lambda: 1 // 0)  # type: ignore[arg-type, return-value]
    heard.worker.do(done.set)
    assert done.wait(30)
    assert "A look at the machine failed" in caplog.text


def test_an_alarm_acts_without_a_change(heard: _Heard) -> None:
    heard.worker.wake_at(time.monotonic() + 0.05)
    wait(lambda: heard.dues, "the alarm")
    assert heard.dues == [(Due.ACT, frozenset())]
    heard.worker.wake_at(time.monotonic() + 1.0)
    heard.worker.wake_at(None)
    time.sleep(1.3)
    assert len(heard.dues) == 1


def test_it_stops_in_time() -> None:
    worker = Worker(lambda due, kinds: None)
    worker.start()
    worker.changed("memory")
    begin = time.monotonic()
    worker.stop(60)
    assert time.monotonic() - begin < 30  # of the sixty it may take
