# SPDX-License-Identifier: GPL-2.0-or-later
"""The engine: gathers facts, publishes the status, carries out plans. One thing at a time, never in the main loop.

Knows the order of work. Judging is `state.py`, choosing is `plan.py`, loading and building are `actions.py`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
import time
from collections.abc import Callable, Iterator
from collections.abc import Set as AbstractSet

from kdumpd.config.model import Config, OnUnload
from kdumpd.config.parse import read_config
from kdumpd.crashes.index import Crash
from kdumpd.errors import (
    BusyError,
    ConfigError,
    KdumpError,
    LoadError,
    NotArmedError,
    NotFoundError,
    NotReservedError,
    TargetError,
    TargetLockedError,
    UnsupportedError,
    os_reason,
)
from kdumpd.host.kexec_errors import LASTING
from kdumpd.host.machine import read_machine
from kdumpd.service.actions import Actor, tell_unloaded
from kdumpd.service.crashtest import CrashTest
from kdumpd.service.crashwatch import CrashWatch
from kdumpd.service.facts import gather
from kdumpd.service.images import ImageReader
from kdumpd.service.journal import Event, Journal
from kdumpd.service.model import Code, Facts, Failure, Held, Reason, Rung, State
from kdumpd.service.pace import Due
from kdumpd.service.places import Places
from kdumpd.service.plan import Plan, make_plan
from kdumpd.service.reach import Reach
from kdumpd.service.readiness import Readiness
from kdumpd.service.records import HoldFile, LoadedFile
from kdumpd.service.recovery import Recovery
from kdumpd.service.status import Status, make_status
from kdumpd.service.watchlist import Rule, watch_list
from kdumpd.service.worker import Job, Worker

_FIRST_RETRY_SECONDS = 30.0
_LAST_RETRY_SECONDS = 3600.0
_TURN_SECONDS = 5.0  # a check is over in much less

# Changes after which something that failed may go well, so that it is tried at once. Not among them: what the service
# itself touches when it builds or loads, else a failure would cause the next attempt.
_HOPEFUL = frozenset({"config", "kernel", "files", "mounts", "block", "hook"})

# Which error a refused `Load` gives, by the reason that stands in its way.
_REFUSALS: dict[Code, type[KdumpError]] = {
    Code.KEXEC_MISSING: UnsupportedError,
    Code.ARCH_UNSUPPORTED: UnsupportedError,
    Code.CRASHKERNEL_MISSING: NotReservedError,
    Code.CRASHKERNEL_IGNORED: NotReservedError,
    Code.CONFIG_ERROR: ConfigError,
    Code.KERNEL_NOT_FOUND: NotFoundError,
    Code.TARGET_UNUSABLE: TargetError,
    Code.TARGET_LOCKED: TargetLockedError,
    Code.LOADING_DISABLED: LoadError,
    Code.LOAD_LIMIT_REACHED: LoadError,
    Code.FADUMP_ACTIVE: UnsupportedError,
}


class Engine:
    """All methods may be called from any thread but the main loop's."""

    def __init__(
        self,
        places: Places,
        actor: Actor,
        journal: Journal,
        publish: Callable[[Status], None],
        *,
        on_changes: Callable[[AbstractSet[str]], None] = lambda kinds: None,
        watch: Callable[[tuple[Rule, ...]], None] | None = None,
        on_crashes: Callable[[tuple[Crash, ...]], None] = lambda crashes: None,
        on_crash: Callable[[Crash], None] = lambda crash: None,
        units: bool = False,
    ) -> None:
        """`publish` gets each status, `on_changes` the kinds of changes, `watch` after each look what to watch."""
        self._places = places
        self._actor = actor
        self._journal = journal
        self._publish_to = publish
        self._on_changes = on_changes
        self._watch = watch
        self._on_crashes = on_crashes
        self._images = ImageReader(places)
        self._readiness = Readiness(places)
        self._reports = False
        self._crash_watch = CrashWatch(places, journal, on_crash)
        self._crash_test = CrashTest(places, journal, units=units)
        self._crashes: tuple[Crash, ...] = ()
        self._turn_lock = threading.Lock()
        self._working = False
        self._worker = Worker(self._on_due)
        self.reach = Reach(places, journal, units=units)
        self._recovery = Recovery(places, journal, lambda: self._worker.changed("files"), units=units)
        self._hopeful = False
        self._failure: Failure | None = None
        self._failures = 0
        self._next_try = 0.0
        self._told: tuple[Rung, tuple[Code, ...]] | None = None

    def start(self) -> None:
        """From now on changes are acted upon, in a thread of the engine's own."""
        self._worker.start()

    def stop(self, seconds: float) -> None:
        """No more of that; waits so long for what is under way."""
        self._worker.stop(seconds)

    def changed(self, what: str) -> None:
        """Something about the machine is not what it was: look at it soon, and act once it is quiet.

        Any thread may call it, the main loop's too; it returns at once. `what` is a kind: config, kernel, files (that
        went into the image), image, mounts, block, cpu, memory, crashes, rehearsal, targets, network, hook (a kernel
        comes or goes), loaded, sysctl, reservation, boot (the boot loader's files), silent (found by reading), watch
        (what was not watched is from now on), missed (a check whose turn it was not), hour.
        """
        self._worker.changed(what)

    def do(self, job: Job) -> None:
        """Runs `job` in the engine's thread."""
        self._worker.do(job)

    def first_status(self) -> Status:
        """The status before anything was done, for the bus and for READY=1. The journal waits for what comes of it."""
        with self._turn():
            status = make_status(self._gather())
            self._publish_to(status)
            return status

    def look(self) -> None:
        """Looks and shows, without acting."""
        try:
            with self._turn():
                self._publish(self._gather())
        except BusyError:
            return  # whoever is at work publishes the outcome

    def check(self, *, patient: bool = True) -> None:
        """The look that is taken again and again: arms the machine when it can be armed.

        After a failure it waits longer each time; not `patient` means that something changed and it tries at once.
        """
        try:
            with self._turn():
                facts = self._gather()
                plan = make_plan(facts)
                if not patient:
                    self._next_try = 0.0
                if plan and time.monotonic() >= self._next_try:
                    with contextlib.suppress(KdumpError):  # noted as `failure`, told to the journal, shown in the state
                        self._apply(plan, facts)
                else:
                    self._publish(facts)
                # Nothing else would wake the engine for the next attempt.
                self._worker.wake_at(self._next_try if plan and self._next_try > 0.0 else None)
        except BusyError:
            # Whoever is at work publishes the outcome. He may be done already, so the check is made up for by the pace.
            self._hopeful = self._hopeful or not patient
            self._worker.changed("missed")

    def load(self) -> None:
        """See Manager.Load. Raises KdumpError."""
        with self._turn(), self._actor.soon():
            self._release()
            facts = self._gather()
            self._do(make_plan(facts, asked=True), facts)

    def rebuild(self) -> None:
        """See Manager.Rebuild. Raises KdumpError."""
        with self._turn():
            self._release()
            facts = self._gather()
            plan = make_plan(facts, asked=True, rebuild=True)
            if not plan.build:
                self._refuse(facts)
            self._do(plan, facts)

    def reload(self) -> None:
        """See Manager.Reload. Raises KdumpError."""
        self.reach.hint(0.0)
        with self._turn():
            facts = self._gather()
            by_other = facts.crash_loaded and facts.loaded is None and not facts.load_interrupted
            if facts.config_errors:
                self._publish(facts)
                self._refuse(facts)
            plan = make_plan(facts, asked=not by_other and not facts.held)
            if plan or not (by_other or facts.held):
                self._do(plan, facts)
            else:
                self._publish(facts)

    def unload(self) -> None:
        """See Manager.Unload. Raises KdumpError."""
        with self._turn(), self._actor.soon():
            facts = self._gather()
            hold = self._hold_file()
            try:
                hold.hold(Held.REQUEST)
            except OSError as error:
                raise LoadError(
                    f"That it is to stay unloaded cannot be noted in {self._places.run_dir}: {os_reason(error)}"
                ) from error
            try:
                if facts.crash_loaded:
                    with self._work("unloading", facts):
                        self._actor.unload(facts)
                self._failure = None
            except KdumpError as error:
                self._release()
                self._fail(Code.UNLOAD_FAILED, error)
                raise
            finally:
                self._publish(self._gather())

    def test_crash(self) -> str:
        """See Manager.TestCrash. Raises KdumpError."""
        with self._turn():
            status = self._publish(self._gather())
            if not status.state.rung.armed:
                raise NotArmedError("This machine is not armed: no dump would come", hint="see: kdumpctl status")
            return self._crash_test.start()

    def crashes(self) -> tuple[Crash, ...]:
        """The crashes that arrived, oldest first. Raises TargetError when they cannot be seen."""
        return self._crash_watch.read(read_config(self._places.root))

    def _hold_file(self) -> HoldFile:
        return HoldFile(self._places.run_dir, read_machine(self._places.root).boot_id)

    def _release(self) -> None:
        try:
            self._hold_file().release()
        except OSError as error:
            raise LoadError(
                f"That it may be loaded again cannot be noted in {self._places.run_dir}: {os_reason(error)}"
            ) from error

    def _on_due(self, due: Due, kinds: AbstractSet[str]) -> None:
        """What the worker calls after changes."""
        if not kinds.isdisjoint({"files", "kernel", "watch", "hour"}):
            self._images.forget()
        self._on_changes(kinds)
        if "network" in kinds:
            self.reach.hint()
        self._hopeful = self._hopeful or not kinds.isdisjoint(_HOPEFUL)
        if due is Due.LOOK:
            self.look()
        else:
            hopeful, self._hopeful = self._hopeful, False
            self.check(patient=not hopeful)

    def _do(self, plan: Plan, facts: Facts) -> None:
        """Carries out what a person asked for, planned for `facts`."""
        if not plan.load:
            self._publish(facts)
            self._refuse(facts)
        self._apply(plan, facts)

    def _refuse(self, facts: Facts) -> None:
        """Raises the error that fits the first reason which stands in the way of loading."""
        if facts.security.load_disabled:
            raise LoadError(
                "The kernel loads no capture kernel until the next boot: kernel.kexec_load_disabled is 1",
                hint="remove kernel.kexec_load_disabled from /etc/sysctl.d and boot again",
            )
        reasons: tuple[Reason, ...] = make_status(facts).state.reasons
        for reason in reasons:
            if reason.code in _REFUSALS:
                raise _REFUSALS[reason.code](reason.sentence, hint=reason.cure or None)
        raise LoadError(reasons[0].sentence if reasons else "There is nothing to load", hint="kdumpctl status")

    def _apply(self, plan: Plan, facts: Facts) -> None:
        """Builds and looks again, then loads. Raises the first KdumpError after everything was tried."""
        first: KdumpError | None = None
        if plan.build:
            first = self._try_build(facts)
            facts = self._gather()
        # A build that failed must not keep an older image from being loaded into an empty place.
        wanted = plan.load if first is None else not facts.crash_loaded and not facts.held
        if wanted and facts.image.usable and facts.kernel is not None and facts.security.may_load:
            error = self._try_load(facts)
            first = first or error
        if first is None:
            self._failure = None
            self._failures = 0
            self._next_try = 0.0
        self._publish(self._gather())
        if first is not None:
            raise first

    def _try_build(self, facts: Facts) -> KdumpError | None:
        if facts.image.damaged is not None:
            self._publish(facts)  # the new image will hide that the old one went bad: the journal has to know
        try:
            with self._work("building", facts):
                self._actor.build(facts.machine.release)
        except KdumpError as error:
            self._fail(Code.BUILD_FAILED, error)
            return error
        finally:
            self._images.forget()
        return None

    def _try_load(self, facts: Facts) -> KdumpError | None:
        try:
            with self._work("loading", facts):
                self._actor.load(facts)
        except KdumpError as error:
            lasting = isinstance(error, LoadError) and error.errno in LASTING
            self._fail(Code.LOAD_FAILED, error, refused=facts.wanted if lasting else "")
            return error
        return None

    def _fail(self, code: Code, error: KdumpError, *, refused: str = "") -> None:
        sentence = error.sentence[:1].upper() + error.sentence[1:]
        self._failure = Failure(code=code, sentence=sentence, cure=error.hint or "", refused=refused)
        delay = min(_FIRST_RETRY_SECONDS * 2**self._failures, _LAST_RETRY_SECONDS)
        self._failures = min(self._failures + 1, 16)
        self._next_try = time.monotonic() + delay
        self._worker.wake_at(self._next_try)  # also after what a person asked for: nothing else may happen for long
        event = Event.BUILD_FAILED if code is Code.BUILD_FAILED else Event.LOAD_FAILED
        self._journal.tell(event, str(self._failure.sentence), hint=error.hint, reason=code.value)

    @contextlib.contextmanager
    def _turn(self) -> Iterator[None]:
        """One at a time. Raises BusyError when a build or load is under way; a mere look is waited for."""
        if self._working or not self._turn_lock.acquire(timeout=_TURN_SECONDS):
            raise BusyError("Another build or load is under way", hint="wait for it: kdumpctl status")
        try:
            yield
        finally:
            self._turn_lock.release()

    @contextlib.contextmanager
    def _work(self, activity: str, facts: Facts) -> Iterator[None]:
        self._working = True
        self._publish_to(make_status(facts, activity=activity))
        try:
            yield
        finally:
            self._working = False

    def _gather(self) -> Facts:
        self._readiness.before()
        config: Config = read_config(self._places.root)
        self._reports = config.on_unload is OnUnload.REPORT
        waiting = self._recovery.look(config)
        if not self._recovery.running:  # what is on its way is not missing
            self._crashes = self._crash_watch.look(config)
        crashes = self._crashes
        self._on_crashes(crashes)
        facts = gather(
            self._places, config, self._images, crashes, failure=self._failure, missed=self._crash_watch.missed
        )
        self.reach.note(config, facts.loaded.image_id if facts.loaded is not None else "")
        if waiting:
            facts = dataclasses.replace(facts, around=dataclasses.replace(facts.around, raw_waiting=waiting))
        if not facts.crash_loaded and self._note_unloaded(facts):
            facts = dataclasses.replace(facts, held=self._hold_file().read())
        if self._watch is not None:
            folder = self._crash_watch.folder
            release = facts.machine.release
            sources, network = self._images.sources, self.reach.wanted
            self._watch(watch_list(self._places, release, crashes=folder, sources=sources, network=network))
        return facts

    def _note_unloaded(self, facts: Facts) -> bool:
        """The kernel holds nothing: when it held ours before, somebody unloaded it past the service."""
        file = LoadedFile(self._places.run_dir, facts.machine.boot_id)
        if file.in_progress() and not facts.held:
            return False  # what appears there next is still ours
        ours = file.read() is not None and not file.interrupted()
        # Otherwise the record would claim whatever somebody else loads next.
        with contextlib.suppress(OSError):
            file.forget()
        if not ours or facts.held:
            return False
        if self._reports:
            with contextlib.suppress(OSError):  # then it is loaded again, which is the lesser evil
                self._hold_file().hold(Held.OTHER)
        tell_unloaded(self._journal, facts.machine.release, reports=self._reports)
        return self._reports

    def _publish(self, facts: Facts) -> Status:
        """Shows the status and tells the journal when the judgement is another one than before."""
        self._readiness.after(facts, reports=self._reports)
        status = make_status(facts)
        state = status.state
        told = (state.rung, tuple(reason.code for reason in state.reasons))
        if told != self._told:
            self._told = told
            self._journal.tell(
                _event(state.rung),
                _sentence(state),
                state=state.rung.value,
                reason=" ".join(told[1]) or None,
                kernel=status.release,
                reserved_bytes=status.reserved_bytes,
                required_bytes=status.required_bytes,
            )
        self._publish_to(status)
        return status


def _sentence(state: State) -> str:
    """The headline, and then all other reasons: a fault that is not told is one that nobody mends."""
    line = state.headline[:1].upper() + state.headline[1:]
    more = "; ".join(str(reason) for reason in state.reasons[1:])
    return f"{line}. Besides: {more}" if more else line


def _event(rung: Rung) -> Event:
    if rung.armed:
        return Event.ARMED
    return Event.RESERVED_MISSING if rung in (Rung.NOT_RESERVED, Rung.RESERVED_TOO_SMALL) else Event.NOT_ARMED
