# SPDX-License-Identifier: GPL-2.0-or-later
"""The order of work in the capture kernel: the log first, then the pages, the manifest last; target after target.

Started by the image's init as `python3 -m kdumpd.collector capture`; exit status 0 means a complete dump, anything
else the failure action. Rebooting is init's business, whatever becomes of this program, and so is starting it again
for the next target when it hangs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import kdumpd
from kdumpd.collector.dump import PHASES, Outcome, check_dump, summary, write_dump
from kdumpd.collector.early import EARLY_SEC, EarlyLog
from kdumpd.collector.kernel_messages import read_messages
from kdumpd.collector.options import DumpOptions, with_usable_codec
from kdumpd.collector.progress import Progress
from kdumpd.collector.source import Source
from kdumpd.collector.supervised import Answers, Orders
from kdumpd.config.capture import CaptureConfig, Destination, LocalDestination, NfsDestination
from kdumpd.config.layout import file_names, folder_name, kexec_command, links
from kdumpd.config.model import Deadlines
from kdumpd.dumpfile.manifest import (
    DUMP_NAME,
    ENCRYPTED_SUFFIX,
    INCOMPLETE_NAME,
    INTERNAL_FAULT,
    KEXEC_LOG_NAME,
    LOG_NAME,
    MANIFEST_NAME,
    FileRecord,
    Manifest,
    Result,
)
from kdumpd.dumpfile.stored import PlainFile, Stored
from kdumpd.errors import DumpFormatError, KdumpError, os_reason
from kdumpd.targets.choose import make_target
from kdumpd.targets.local import DEVICE_DEADLINE_SEC
from kdumpd.targets.target import Store, Target
from kdumpd.vmcore.kernel_log import panic_line

_MANIFEST_ROOM = 64 << 10
_LAST_SEC = 15.0  # of the whole capture: to write what is known, before the supervisor kills
_PHASES = 2 + PHASES


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """Where things lie in the capture image."""

    settings: Path = Path("/etc/kdumpd/capture.json")
    image: Path = Path("/etc/kdumpd/image.json")
    vmcore: Path = Path("/proc/vmcore")
    mountpoint: Path = Path("/run/kdumpd/target")
    heartbeat: Path | None = Path("/run/kdumpd/alive")
    answers: Path | None = Path("/run/kdumpd/answers")
    kmsg: Path | None = Path("/dev/kmsg")
    device_deadline_sec: float = DEVICE_DEADLINE_SEC


def capture(places: Places, orders: Orders = Orders()) -> int:  # noqa: B008 # it is frozen
    """Saves the crash. Returns the exit status; every failure ends in one sentence on the console."""
    progress = Progress(_PHASES, heartbeat=places.heartbeat)
    answers = Answers(places.answers)
    try:
        with contextlib.ExitStack() as opened:
            return _capture(places, orders, progress, answers, opened)
    except KdumpError as error:
        reason = str(error)
    except OSError as error:
        reason = f"{error.filename or 'the system'}: {os_reason(error)}"
    except MemoryError:
        reason = "out of memory (reserve more with crashkernel=)"
    progress.say(f"CAPTURE FAILED: {reason}")
    answers.tell("reason", reason)
    return 1


def _capture(places: Places, orders: Orders, progress: Progress, answers: Answers, opened: contextlib.ExitStack) -> int:
    """One target after the other, until one has it."""
    settings = CaptureConfig.from_json(places.settings.read_text(encoding="utf-8"), str(places.settings))
    started = time.time_ns() // 1000
    progress.phase("reading the log of the crashed kernel")
    source: Source | None = None
    trouble: KdumpError | None = None
    try:
        source = opened.enter_context(Source.open(places.vmcore))
    except KdumpError as error:
        trouble = error  # still told on the target: somebody will look there
        progress.say(f"{places.vmcore} cannot be used: {error}")
    lines = source.log_lines() if source is not None else []
    panic = panic_line(lines)
    if panic is not None and not settings.encrypt_to:
        progress.say(f"the crashed kernel said: {panic}")

    crash_time = source.info.crash_time if source is not None else None
    name = folder_name(settings.layout, settings.hostname, crash_time or started // 1_000_000)
    if any(getattr(place, "fstype", "") == "vfat" for place in settings.destinations):
        name = name.replace(":", "-")  # which FAT has for drives
    run = _Run(
        settings, progress, image_id(places.image), started, source, trouble, lines, answers, places.kmsg, places.vmcore
    )
    if all(isinstance(place, LocalDestination | NfsDestination) for place in settings.destinations):
        # Other names are for people who look at filesystems; elsewhere kdumpd looks for its own.
        run.names = file_names(settings.layout, name)
    if orders.because:
        run.notes.append(f"an earlier run of the collector came to no end: {orders.because}")
    chain = settings.destinations[orders.after :]
    early = EarlyLog(
        chain[1:] if lines else (), lambda destination: run.save_early(destination, chain[0], name, places)
    )
    run.log_is_safe = early.not_needed
    for number, destination in enumerate(chain):
        answers.tell("target", str(orders.after + number + 1))
        until = _until(settings.deadlines, orders.until_sec, len(chain) - number)
        if run.deliver(destination, name, places, until):
            return 0
        early.settle(progress.alive)
    answers.tell("reason", run.notes[-1] if run.notes else "no target is left to be tried")
    return 1


def _until(deadlines: Deadlines, until_sec: int | None, targets_left: int) -> float | None:
    """When (time.monotonic()) the next target's time is over: each of those left has an equal share of what is left, or
    what kdump.conf gives it. The last seconds are for the manifest."""
    if until_sec is None:
        return None
    now = time.monotonic()
    share = max(0.0, until_sec - _LAST_SEC - now) / targets_left
    return now + (share if deadlines.target_sec is None else min(share, deadlines.target_sec))


class _Run:
    """One crash on its way through the chain of targets."""

    def __init__(
        self,
        settings: CaptureConfig,
        progress: Progress,
        image: str | None,
        started: int,
        source: Source | None,
        trouble: KdumpError | None,
        lines: list[str],
        answers: Answers = Answers(None),  # noqa: B008 # it says nothing
        kmsg: Path | None = None,
        vmcore: Path = Path("/proc/vmcore"),
    ) -> None:
        """`started` in microseconds since 1970. `source` is None when the memory cannot be read at all, for which
        `trouble` is the reason. `log_is_safe` is called when the log lies on a target, `notes` go into each manifest,
        `names` are what files are called other than kdumpd does.
        """
        self._settings = settings
        self._progress = progress
        self._image = image
        self._started = started
        self._source = source
        self._trouble = trouble
        self._lines = lines
        self._panic = panic_line(lines)
        self._answers = answers
        self._kmsg = kmsg
        self._vmcore = vmcore
        self._until: float | None = None
        self._has_told = False
        self.names: Mapping[str, str] = {}
        self.notes: list[str] = []
        self.log_is_safe: Callable[[], None] = lambda: None
        self._dump = with_usable_codec(settings.dump, self.notes)

    def deliver(self, destination: Destination, name: str, places: Places, until: float | None = None) -> bool:
        """Saves the crash there; whether the dump is complete. What goes wrong is told, and noted for the next one.
        `until` is when the target's time is over."""
        progress = self._progress
        self._until = until
        if self._source is not None:
            self._source.steps.clear()  # they tell of the target before
        progress.begin_again(1)  # only the log was read
        try:
            progress.phase(f"reaching {destination}")
            target = self._target(destination, places.mountpoint, places)
            with contextlib.ExitStack() as stack:
                with self._limited():
                    store = stack.enter_context(target.open_crash(name, progress.alive))
                manifest = self._save(store)
                where, mounted = store.where, mounted_as(places.mountpoint)
        except KdumpError as error:
            self._failed(destination, str(error))
            return False
        except Exception as error:  # a fault of ours, or no memory for this target, must not cost the next one
            self._failed(destination, f"{INTERNAL_FAULT}: {error!r}")
            return False
        self._has_told = True
        self._tell(destination, where, manifest)
        for step in manifest.steps:
            progress.say(f"{step.step}: {step.reason}")
        if manifest.result is Result.COMPLETE and manifest.dump is not None:
            took = (manifest.finished_usec - manifest.started_usec) / 1e6
            name = self.names.get(DUMP_NAME, DUMP_NAME) + (ENCRYPTED_SUFFIX if self._settings.encrypt_to else "")
            self._answers.tell("mount", mounted)
            said = summary(manifest.dump.size_bytes, manifest.pages, took, manifest.page_size_bytes)
            progress.say(f"SAVED {where}/{name}: {said}")
            return True
        self._failed(destination, f"{manifest.result} in {where}: {manifest.reason}")
        return False

    def save_early(self, destination: Destination, first: Destination, name: str, places: Places) -> bool:
        """The log alone, while the `first` target does not answer; whether it is saved."""
        reason = f"{first} had not answered after {EARLY_SEC:.0f} s, so that the log went here first"
        try:
            number = self._settings.destinations.index(destination)
            target = self._target(destination, places.mountpoint.with_name(f"early-{number}"), places)
            with target.open_crash(name, lambda: None) as store:
                log = self._save_log(store)
                manifest = self._manifest(log, Outcome(), reason, dumped=False)
                self._write_manifest(store, manifest)
        except KdumpError as error:
            self.notes.append(f"the log did not go to {destination} first: {error}")
            return False
        except Exception as error:  # a fault of ours costs this target the log, and nothing else
            self.notes.append(f"the log did not go to {destination} first: {INTERNAL_FAULT}: {error!r}")
            return False
        if self._has_told:
            self._answers.tell("told", "yes")  # a target that has more was named already
        else:
            self._tell(destination, store.where, manifest)
        return log is not None

    def _target(self, destination: Destination, mountpoint: Path, places: Places) -> Target:
        return make_target(
            destination,
            mountpoint,
            encrypt_to=self._settings.encrypt_to,
            names=self.names,
            links=links(self._settings.layout, self._settings.kernel),
            device_deadline_sec=places.device_deadline_sec,
            network=self._settings.network,
            network_deadline_sec=self._settings.deadlines.network_sec,
        )

    def _write_manifest(self, store: Store, manifest: Manifest) -> None:
        with store.create_file(MANIFEST_NAME + ".tmp") as file:
            file.write_at(0, manifest.to_json().encode())
            file.sync()
        store.rename(MANIFEST_NAME + ".tmp", MANIFEST_NAME)

    def _limited(self) -> contextlib.AbstractContextManager[None]:
        return self._progress.limited(self._until, "the time for this target is over (see deadline_total)")

    def _tell(self, destination: Destination, where: str, manifest: Manifest) -> None:
        self._answers.tell("result", manifest.result)
        self._answers.tell("name", str(destination))
        self._answers.tell("path", where)
        self._answers.tell("told", "yes")

    def _failed(self, destination: Destination, reason: str) -> None:
        self._progress.say(f"CAPTURE FAILED on {destination}: {reason}")
        self.notes.append(f"before this target {destination} was tried: {reason}")

    def _save(self, store: Store) -> Manifest:
        """Log, dump, manifest. Only a manifest that cannot be written raises."""
        source = self._source
        with store.create_file(MANIFEST_NAME + ".tmp") as manifest_file:
            try:
                # A full disk must not take away the file that says that the disk is full.
                manifest_file.reserve(_MANIFEST_ROOM)
            except KdumpError as error:
                self.notes.append(str(error))
            log = self._save_log(store)
            outcome = Outcome()
            reason = str(self._trouble) if self._trouble is not None else None
            dumped = False
            if source is not None:
                reason = self._save_dump(store, source, outcome)
                dumped = outcome.size_bytes > 0
                if not dumped:
                    store.remove(INCOMPLETE_NAME)
                self.notes.extend(source.notes)
            self._save_messages(store)
            self.notes.extend((*outcome.notes, *store.notes))
            manifest = self._manifest(log, outcome, reason, dumped)
            text = manifest.to_json().encode()
            manifest_file.write_at(0, text)
            manifest_file.truncate(len(text))
            manifest_file.sync()
        store.rename(MANIFEST_NAME + ".tmp", MANIFEST_NAME)
        return manifest

    def _save_log(self, store: Store) -> FileRecord | None:
        if not self._lines:
            return None
        data = ("\n".join(self._lines) + "\n").encode()
        try:
            with store.create_file(LOG_NAME) as file:
                file.write_at(0, data)
                file.sync()
            store.sync()
        except KdumpError as error:
            self.notes.append(f"the log was not saved: {error}")
            self._progress.say(f"the log was not saved: {error}")
            return None
        self.log_is_safe()
        self._progress.say(f"saved {LOG_NAME}: {len(self._lines)} lines")
        return FileRecord(
            name=self.names.get(LOG_NAME, LOG_NAME), size_bytes=len(data), sha256=hashlib.sha256(data).hexdigest()
        )

    def _save_messages(self, store: Store) -> None:
        """What this kernel said; without it a dump is as good."""
        if self._kmsg is None:
            return
        try:
            texts = {KEXEC_LOG_NAME: read_messages(self._kmsg)}
            if self.names:
                texts["kexec_cmd"] = kexec_command(self._settings.kernel, Path("/proc/cmdline").read_text()).encode()
            for name, data in texts.items():
                with store.create_file(name) as file:
                    file.write_at(0, data)
                    file.sync()
        except (KdumpError, OSError) as error:
            self.notes.append(f"{KEXEC_LOG_NAME} was not saved: {error}")

    def _save_dump(self, store: Store, source: Source, outcome: Outcome) -> str | None:
        """None when the dump is complete and has its final name, else the reason why not."""
        options = DumpOptions.of(self._dump)
        try:
            with self._limited():
                with store.create_file(INCOMPLETE_NAME) as file:
                    if self._dump.external:
                        from kdumpd.collector.external import run_external

                        run_external(self._dump.external, self._vmcore, file, outcome, self._progress)
                    else:
                        write_dump(source, file, outcome, options, self._progress)
                stored = store.stored(INCOMPLETE_NAME) if options.verify else None
                if stored is not None and self._dump.external:
                    stored = self._summed(store, stored, outcome)
                if stored is not None:
                    check_dump(stored, source, outcome, options, self._progress)
                    self._compare(store, outcome)
            store.rename(INCOMPLETE_NAME, DUMP_NAME)
        except KdumpError as error:
            return str(error)
        except MemoryError:
            return "out of memory in the capture kernel (reserve more with crashkernel=)"
        except Exception as error:  # a fault of ours must still leave the log, the manifest and its own name
            return f"{INTERNAL_FAULT}: {error!r}"
        return None

    def _summed(self, store: Store, stored: Stored, outcome: Outcome) -> Stored | None:
        """Takes the checksum of what another program has written. The file to be checked; None where its format is not
        known."""
        from kdumpd.collector.external import checksums, known_format

        with contextlib.closing(stored):
            if isinstance(stored, PlainFile):  # what lies elsewhere is not fetched for that
                outcome.regions = checksums(stored, self._progress)
            if not known_format(stored):
                outcome.notes.append("what it wrote is no dump that kdumpd can check")
                return None
        return store.stored(INCOMPLETE_NAME)

    def _compare(self, store: Store, outcome: Outcome) -> None:
        """Asks the other end of a connection for the checksums. Raises DumpFormatError when they are others."""
        with outcome.timed("compare"):
            for region in outcome.regions:
                found = store.digest(INCOMPLETE_NAME, region.offset, region.size_bytes)
                if found is not None and found != region.sha256:
                    end = region.offset + region.size_bytes
                    raise DumpFormatError(f"what was written is not what arrived, between {region.offset} and {end}")

    def _manifest(self, log: FileRecord | None, outcome: Outcome, reason: str | None, dumped: bool) -> Manifest:
        source = self._source
        utsname = source.utsname() if source is not None else None
        if source is not None and reason is None:
            result, name = Result.COMPLETE, self.names.get(DUMP_NAME, DUMP_NAME)
        else:
            result, name = Result.INCOMPLETE, self.names.get(INCOMPLETE_NAME, INCOMPLETE_NAME)
            if not dumped:
                result = Result.LOG_ONLY if log is not None else Result.FAILED
        crash_time = source.info.crash_time if source is not None else None
        return Manifest(
            result=result,
            reason=reason,
            hostname=self._settings.hostname,
            kernel=utsname.release if utsname is not None and utsname.release else self._settings.kernel,
            kernel_version=utsname.version if utsname is not None else "",
            machine=utsname.machine if utsname is not None else "",
            panic=self._panic,
            crash_time_usec=None if crash_time is None else crash_time * 1_000_000,
            started_usec=self._started,
            finished_usec=time.time_ns() // 1000,
            kdumpd_version=kdumpd.__version__,
            image_id=self._image,
            level=self._dump.levels[0] if outcome.level is None else outcome.level,
            compression=str(self._dump.compression),
            compression_level=outcome.compression_level,
            dump=FileRecord(name=name, size_bytes=outcome.size_bytes, regions=outcome.regions) if dumped else None,
            log=log,
            pages=outcome.pages,
            page_size_bytes=outcome.page_size,
            peak_rss_bytes=outcome.peak_memory(),
            lowest_available_bytes=self._progress.lowest_available,
            timings_sec=outcome.timings_sec,
            steps=tuple(source.steps) if source is not None else (),
            notes=tuple(dict.fromkeys(self.notes)),
        )


def mounted_as(mountpoint: Path, mounts: Path = Path("/proc/self/mounts")) -> str:
    """Device, filesystem and options of what is mounted there, as proc_pid_mounts(5) has them; "" for nothing."""
    try:
        lines = mounts.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    found = (line.split()[:4] for line in reversed(lines))
    return next((f"{device} {kind} {how}" for device, where, kind, how in found if where == str(mountpoint)), "")


def image_id(path: Path) -> str | None:
    """Which image this is. A record that cannot be read costs nothing but this name."""
    try:
        found = json.loads(path.read_text(encoding="utf-8")).get("image_id")
    except (OSError, ValueError, AttributeError):
        return None
    return found if isinstance(found, str) else None
