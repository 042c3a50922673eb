# SPDX-License-Identifier: GPL-2.0-or-later
"""kdumpd.service.jobs: order, outcome, cancelling; no success that was none."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Iterator

import pytest

from kdumpd.errors import BusyError, CancelledError, KdumpError, LoadError, UsageError
from kdumpd.service.dbus.job import JobObject
from kdumpd.service.jobs import Job, JobQueue, JobState
from kdumpd.service.worker import Worker


class Work:
    """A queue whose jobs do what the test says."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, str, str, float]] = []
        self.go = threading.Event()
        self.interruptible = True
        self.interrupted = threading.Event()
        self.worker = Worker(lambda due, kinds: None)
        self.queue = JobQueue(
            self.worker.do,
            {"load": self._load, "rebuild": self._rebuild, "unload": self._fault},
            interrupt=self._interrupt,
            on_change=self._note,
        )
        self.worker.start()

    def _note(self, job: Job) -> None:
        self.seen.append((job.number, job.view.state.value, job.view.phase, job.view.progress))

    def _load(self) -> None:
        self.queue.report("loading")

    def _rebuild(self) -> None:
        self.queue.report("building: packing", 0.4)
        assert self.go.wait(10)
        if self.interrupted.is_set():
            raise LoadError("It was interrupted")

    def _fault(self) -> None:
        raise ZeroDivisionError

    def _interrupt(self) -> bool:
        if self.interruptible:
            self.interrupted.set()
            self.go.set()
        return self.interruptible

    def running(self, kind: str = "rebuild") -> Job:
        """A job of that kind that is under way."""
        job = self.queue.start(kind)
        until(lambda: job.view.phase != "")
        return job


def until(condition: Callable[[], object]) -> None:
    """Waits for `condition`."""
    for _ in range(1000):
        if condition():
            return
        threading.Event().wait(0.01)
    raise AssertionError("in vain")


@pytest.fixture
def work() -> Iterator[Work]:
    found = Work()
    yield found
    found.go.set()
    found.worker.stop(5)


def test_a_job_tells_its_way_and_its_end(work: Work) -> None:
    job = work.queue.start("rebuild")
    work.go.set()
    job.outcome.result(10)
    until(lambda: len(work.seen) == 4)
    assert work.seen == [
        (1, "queued", "", 0.0),
        (1, "running", "", 0.0),
        (1, "running", "building: packing", 0.4),
        (1, "done", "building: packing", 1.0),
    ]


def test_jobs_run_one_after_the_other(work: Work) -> None:
    first, second = work.running(), work.queue.start("load")
    assert second.view.state is JobState.QUEUED
    work.go.set()
    second.outcome.result(10)
    assert first.view.state is JobState.DONE
    states = [entry[:2] for entry in work.seen]
    assert states.index((first.number, "done")) < states.index((second.number, "running"))


def test_what_waits_already_is_not_queued_twice(work: Work) -> None:
    running = work.running()
    waiting = work.queue.start("rebuild")
    assert waiting is not running
    assert work.queue.start("rebuild") is waiting
    assert work.queue.start("load") is not waiting


def test_cancelling_what_waits(work: Work) -> None:
    work.running()
    waiting = work.queue.start("load")
    waiting.cancel()
    with pytest.raises(CancelledError):
        waiting.outcome.result(0)
    assert waiting.view.state is JobState.CANCELLED
    with pytest.raises(BusyError, match="over already"):
        waiting.cancel()
    assert all(entry[2] != "loading" for entry in work.seen)


def test_cancelling_what_runs(work: Work) -> None:
    job = work.running()
    job.cancel()
    with pytest.raises(CancelledError, match="interrupted"):
        job.outcome.result(10)
    assert job.view.state is JobState.CANCELLED


def test_what_cannot_be_interrupted_says_so_and_goes_on(work: Work) -> None:
    work.interruptible = False
    job = work.running()
    with pytest.raises(BusyError, match="cannot be interrupted"):
        job.cancel()
    work.go.set()
    job.outcome.result(10)
    assert job.view.state is JobState.DONE


def test_a_job_that_ended_well_in_spite_of_a_cancel_is_done(work: Work) -> None:
    job = work.running()
    work.interrupted = threading.Event()
    work._interrupt = lambda: True  # type: ignore[method-assign]  # too late: it has no effect
    work.queue._interrupt = work._interrupt
    job.cancel()
    work.go.set()
    job.outcome.result(10)
    assert job.view.state is JobState.DONE


def test_a_fault_is_a_failure_and_the_next_job_runs(work: Work, caplog: pytest.LogCaptureFixture) -> None:
    job = work.queue.start("unload")
    with pytest.raises(KdumpError, match="failed inside kdumpd"):
        job.outcome.result(10)
    assert job.view.state is JobState.FAILED
    assert "ZeroDivisionError" in caplog.text
    work.queue.start("load").outcome.result(10)


def test_a_look_that_does_nothing_is_no_job(work: Work) -> None:
    work.queue.settle("")
    assert work.seen == []
    assert work.queue.jobs() == ()


@pytest.mark.parametrize("failure", ["", "No memory"])
def test_a_look_that_acts_becomes_one_with_its_own_outcome(work: Work, failure: str) -> None:
    work.queue.report("building: packing", 0.5)
    work.queue.report("loading")
    (job,) = work.queue.jobs()
    assert (job.kind, job.view.state, job.view.phase) == ("look", JobState.RUNNING, "loading")
    work.queue.settle(failure)
    assert job.view.state is (JobState.FAILED if failure else JobState.DONE)
    assert str(job.view.error or "") == failure
    work.queue.settle("later")
    assert len(work.seen) == 3


def test_bounds(work: Work) -> None:
    with pytest.raises(UsageError, match="'sleep' is no kind of job"):
        work.queue.start("sleep")
    work.go.set()
    for _ in range(40):
        work.queue.start("load").outcome.result(10)
    assert len(work.queue.jobs()) <= 17


def test_stopping_cancels_what_waits(work: Work) -> None:
    work.running()
    waiting = work.queue.start("load")
    work.queue.stop()
    work.go.set()
    with pytest.raises(CancelledError, match="stops"):
        waiting.outcome.result(0)
    with pytest.raises(BusyError):
        work.queue.start("load")


def test_a_job_that_ends_while_it_is_shown_is_completed_once_and_with_its_end(work: Work) -> None:
    """Shown by the thread of the call while the engine's thread goes on."""
    job = work.running()
    shown = JobObject(job)
    completed: list[tuple[str, ...]] = []

    def goes_on(*_: object) -> None:
        work.go.set()
        until(lambda: job.view.state.over)

    shown.PropertiesChanged.connect(goes_on)
    shown.Completed.connect(lambda *words: completed.append(words))
    work.queue.report("building: checking", 0.9)
    job.change(dataclasses.replace(job.view, state=JobState.QUEUED))  # another state than was shown last
    shown.show()
    assert completed == []
    shown.show()
    assert completed == [("done", "", "")]
