# SPDX-License-Identifier: GPL-2.0-or-later
"""Jobs: work that takes long enough to be followed. What a person asked for, or what a look found to build or load.

A job says which phase it is in and how far it is, may be cancelled, and keeps its outcome. All work runs in the
engine's thread, one piece after the other. Knows nothing of what the work is.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import enum
import functools
import logging
import threading
from collections import deque
from collections.abc import Callable, Mapping

from kdumpd.errors import BusyError, CancelledError, KdumpError, UsageError

LOOK = "look"  # the kind of a job that the service began by itself
_WAITING = 16
_KEPT = 16  # finished jobs whose outcome can still be asked for
_LOG = logging.getLogger(__name__)


class JobState(enum.StrEnum):
    """Where a job is; the last three are outcomes."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def over(self) -> bool:
        """True for an outcome."""
        return self not in (JobState.QUEUED, JobState.RUNNING)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class JobView:
    """A job at one moment. `progress` is 0..1 within the phase; `error` is set for failed and cancelled ones."""

    state: JobState = JobState.QUEUED
    phase: str = ""
    progress: float = 0.0
    error: KdumpError | None = None


class Job:
    """One piece of work. `outcome` is done when the work is; its exception is the KdumpError that ended it."""

    def __init__(self, number: int, kind: str, queue: JobQueue) -> None:
        self.number = number
        self.kind = kind
        self.outcome: concurrent.futures.Future[None] = concurrent.futures.Future()
        self._queue = queue
        self._view = JobView()

    @property
    def view(self) -> JobView:
        """What is known of the job now."""
        return self._view

    def cancel(self) -> None:
        """Ends the job. Raises BusyError when it is at something that cannot be interrupted, or over."""
        self._queue.cancel(self)

    def change(self, view: JobView) -> None:
        """For the queue alone."""
        self._view = view


class JobQueue:
    """The jobs that wait, the one that runs, and the last ones that ended. Any thread may call the methods.

    `do` runs something in the engine's thread. `kinds` says what can be asked for. `interrupt` ends what the running
    job does, if it can be ended; it says whether it could. `on_change` hears of each new job and each change.
    """

    def __init__(
        self,
        do: Callable[[Callable[[], None]], None],
        kinds: Mapping[str, Callable[[], None]],
        *,
        interrupt: Callable[[], bool],
        on_change: Callable[[Job], None],
    ) -> None:
        self._do = do
        self._kinds = kinds
        self._interrupt = interrupt
        self._on_change = on_change
        self._waiting: list[Job] = []
        self._current: Job | None = None
        self._finished: deque[Job] = deque(maxlen=_KEPT)
        self._lock = threading.Lock()
        self._number = 0
        self._stopped = False
        self._cancelled: set[int] = set()

    def start(self, kind: str) -> Job:
        """A job of that kind, or the one that waits for its turn already.

        Raises UsageError for an unknown kind, BusyError when too many wait.
        """
        if kind not in self._kinds:
            raise UsageError(f"'{kind}' is no kind of job", hint=f"one of: {', '.join(self._kinds)}")
        with self._lock:
            for job in self._waiting:
                if job.kind == kind:
                    return job
            if len(self._waiting) >= _WAITING or self._stopped:
                raise BusyError("Too much work is waiting already", hint="wait for it: kdumpctl status")
            job = self._new_job(kind)
            self._waiting.append(job)
        self._on_change(job)
        self._do(functools.partial(self._run, job))
        return job

    def report(self, phase: str, progress: float = 0.0) -> None:
        """What is done now. Where no job runs, a look does it, and becomes a job by that."""
        with self._lock:
            if self._current is None:
                self._current = self._new_job(LOOK)
                self._current.change(JobView(state=JobState.RUNNING))
            job = self._current
            if (job.view.phase, job.view.progress) == (phase, progress):
                return
            job.change(dataclasses.replace(job.view, phase=phase, progress=progress))
        self._on_change(job)

    def settle(self, failure: str) -> None:
        """Nothing is done any more. A look that had become a job is over, well if there is no `failure`."""
        with self._lock:
            job = self._current
            if job is None or job.kind != LOOK:
                return
            self._current = None
        self._finish(job, KdumpError(failure) if failure else None)

    def cancel(self, job: Job) -> None:
        """See Job.cancel."""
        with self._lock:
            waits = job in self._waiting
            if waits:
                self._waiting.remove(job)
            elif self._current is not job:
                raise BusyError("The job is over already")
            else:
                self._cancelled.add(job.number)
        if waits:
            self._finish(job, CancelledError("The job was cancelled before it began"))
        elif not self._interrupt():
            self._cancelled.discard(job.number)
            raise BusyError("What the job does now cannot be interrupted; it will be over in a moment")

    def jobs(self) -> tuple[Job, ...]:
        """The waiting and running jobs, and the last ones that ended, oldest first."""
        with self._lock:
            current = [] if self._current is None else [self._current]
            return tuple(sorted([*self._finished, *current, *self._waiting], key=lambda job: job.number))

    def stop(self) -> None:
        """The engine's thread has ended: what waits never begins."""
        with self._lock:
            self._stopped = True
            left, self._waiting = self._waiting, []
        for job in left:
            self._finish(job, CancelledError("The service stops"))

    def _new_job(self, kind: str) -> Job:
        self._number += 1
        return Job(self._number, kind, self)

    def _run(self, job: Job) -> None:
        """In the engine's thread."""
        with self._lock:
            if job not in self._waiting:
                return  # cancelled
            self._waiting.remove(job)
            self._current = job
            job.change(JobView(state=JobState.RUNNING))
        self._on_change(job)
        error: KdumpError | None = None
        try:
            self._kinds[job.kind]()
        except KdumpError as raised:
            error = raised
        except Exception:
            # The caller has to hear of it; the service goes on.
            _LOG.exception("A job failed inside kdumpd")
            error = KdumpError("The job failed inside kdumpd", hint="journalctl -u kdumpd")
        with self._lock:
            self._current = None
        self._finish(job, error)

    def _finish(self, job: Job, error: KdumpError | None) -> None:
        with self._lock:
            if job.number in self._cancelled and error is not None:
                error = CancelledError(error.sentence, hint=error.hint)
            self._cancelled.discard(job.number)
            state = JobState.CANCELLED if isinstance(error, CancelledError) else JobState.FAILED
            state = JobState.DONE if error is None else state
            progress = 1.0 if error is None else job.view.progress
            job.change(dataclasses.replace(job.view, state=state, progress=progress, error=error))
            self._finished.append(job)
        if error is None:
            job.outcome.set_result(None)
        else:
            job.outcome.set_exception(error)
        self._on_change(job)
