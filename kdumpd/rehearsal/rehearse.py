# SPDX-License-Identifier: GPL-2.0-or-later
"""A rehearsal: this kernel and this image boot in a scratch machine, crash there, and have to deliver a dump.

The order: a scratch disk; a first system that loads the pair and crashes; the capture; the first system once more, to
hand over what lies on the disk; the checks that a dump of this machine would get. Everything happens in a folder of
its own, 0700, that is removed. Neither this machine's kernel nor its disks are touched.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from kdumpd.config.capture import CaptureConfig
from kdumpd.crashes.index import Crash
from kdumpd.errors import KdumpError, os_reason
from kdumpd.host.files import read_text
from kdumpd.host.kernels import Kernel, read_kernel_config
from kdumpd.host.space import parse_meminfo
from kdumpd.image import kmodules
from kdumpd.rehearsal import machine as scratch_machine
from kdumpd.rehearsal import scratch
from kdumpd.rehearsal.first_system import Pair, first_system
from kdumpd.rehearsal.found import check, unpack
from kdumpd.rehearsal.machine import Machine, StageError
from kdumpd.rehearsal.scratch import Stage

MIB = 1 << 20
# What the first system has besides the reservation: a kernel, the pair as files, Python.
FIRST_MIB = 448
# More is not reserved for a rehearsal: who sets more aside does so for a large machine, which this is none.
MOST_RESERVED_MIB = 1024
LEAST_RESERVED_MIB = 128
_SPARE_MIB = 256  # left to this machine
_LEAST_DISK_MIB = 1024
_EXCHANGE_SECTORS = 1  # by so many the two disks differ, which is how the first system tells them apart
_UP_SECONDS = {"kvm": 60.0, "tcg": 180.0}
_LOAD_SECONDS = 180.0
_CAPTURE_SECONDS = 600.0
_READ_SECONDS = 180.0
# The first system's own panic is the one that was asked for.
_END = (
    r"^\[kdumpd\] (final action|failure action): (\S+)|^\[kdumpd\] FAILED: (.*)"
    r"|Kernel panic - not syncing: (?!sysrq)(.*)"
)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What to rehearse. `image_id` is the image's, `reserved_bytes` what this machine sets aside, 0 if nothing."""

    arch: str
    kernel: Kernel
    pair: Pair
    capture: CaptureConfig
    image_id: str
    reserved_bytes: int
    root: Path = Path("/")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How it went: `problem` is half a sentence, None when the dump is complete and passed its checks."""

    problem: str | None
    accel: str
    seconds: float
    exchanged: tuple[str, ...]
    dump_bytes: int = 0
    lowest_available_bytes: int = 0


Progress = Callable[[str], None]


def rehearse(
    wanted: Wanted, log: Path, *, accel: str | None = None, folder: Path | None = None, progress: Progress = print
) -> Outcome:
    """Rehearses; the consoles are kept in `log` (0600). `accel` is kvm or tcg, None for what works here.

    Raises KdumpError where nothing could be found out about the pair: QEMU is missing, or memory, or room in `folder`.
    """
    scratch_machine.find_program(wanted.arch)
    memory_mib, reserved_mib = _sizes(wanted.reserved_bytes)
    config = read_kernel_config(wanted.kernel.release, wanted.root)
    index = kmodules.read_index(wanted.kernel)
    stage = scratch.set_stage(wanted.capture, wanted.pair.modules, index, config)
    if reserved_mib << 20 != wanted.reserved_bytes:
        stage = dataclasses.replace(stage, exchanged=(*stage.exchanged, f"the reservation, {reserved_mib} MiB here"))
    began = time.monotonic()
    with _folder(folder or Path("/var/tmp"), memory_mib) as place:
        progress("making the scratch machine")
        run = _Run(wanted, stage, index, config, place, log, memory_mib, reserved_mib)
        problem: str | None = None
        crash: Crash | None = None
        used = accel or ("kvm" if os.access("/dev/kvm", os.R_OK | os.W_OK) else "tcg")
        try:
            try:
                run.crash(used, progress)
            except _NotUpError:
                # /dev/kvm may be there and hang every machine (nested virtualisation).
                if accel is not None or used == "tcg":
                    raise
                used = "tcg"
                run.crash(used, progress)
            progress("looking at the dump")
            run.read(used)
            crash = run.found()
        except StageError as error:
            problem = error.sentence
        manifest = None if crash is None else crash.manifest
        return Outcome(
            problem=problem,
            accel=used,
            seconds=time.monotonic() - began,
            exchanged=stage.exchanged,
            dump_bytes=0 if crash is None else crash.dump_bytes or 0,
            lowest_available_bytes=0 if manifest is None else manifest.lowest_available_bytes or 0,
        )


class _NotUpError(StageError):
    """Not even the first system ran."""


class _Run:
    """One rehearsal in the folder `place`."""

    def __init__(
        self,
        wanted: Wanted,
        stage: Stage,
        index: kmodules.ModuleIndex,
        config: dict[str, str] | None,
        place: Path,
        log: Path,
        memory_mib: int,
        reserved_mib: int,
    ) -> None:
        self._wanted = wanted
        self._stage = stage
        self._place = place
        self._log = log
        self._memory_mib = memory_mib
        self._reserved_mib = reserved_mib
        self._marker = secrets.token_hex(8)
        # The dump may hold all memory of the scratch machine, and xfs makes nothing below 300 MiB.
        target_bytes = (memory_mib + _LEAST_DISK_MIB) << 20
        exchange_bytes = target_bytes + (_EXCHANGE_SECTORS << 9)
        self._target, self._exchange = place / "target", place / "exchange"
        console = scratch_machine.console_of(wanted.arch)
        pair = dataclasses.replace(wanted.pair, cmdline=f"{wanted.pair.cmdline} console={console}")
        settings = {
            "marker": self._marker,
            "fstype": stage.target.fstype,
            "directory": stage.target.directory,
            "target": target_bytes >> 9,
            "exchange": exchange_bytes >> 9,
        }
        initramfs = first_system(pair, stage, index, settings, config)
        try:
            scratch.make_disk(self._target, target_bytes, stage.target)
            scratch.make_file(self._exchange, exchange_bytes)
            for name, data in (("kernel", wanted.pair.kernel), ("initramfs", initramfs)):
                scratch.make_file(place / name, 0)
                (place / name).write_bytes(data)
            log.unlink(missing_ok=True)
            scratch.make_file(log, 0)
        except OSError as error:
            raise KdumpError(f"The scratch machine cannot be made: {error.filename}: {os_reason(error)}") from error

    def _machine(self, accel: str, append: str) -> Machine:
        return Machine(
            self._wanted.arch,
            accel=accel,
            kernel=self._place / "kernel",
            initrd=self._place / "initramfs",
            append=f"{append} panic=-1 loglevel=4",
            memory_mib=self._memory_mib,
            bus=self._stage.bus,
            disks=(self._target, self._exchange),
            log=self._log,
        )

    def crash(self, accel: str, progress: Progress) -> None:
        """Boots, loads, crashes, and waits until the capture kernel is done. Raises StageError."""
        with self._machine(accel, f"crashkernel={self._reserved_mib}M rehearsal=crash") as guest:
            progress(f"booting the first system ({accel})")
            try:
                guest.wait_for("^rehearsal: up", _UP_SECONDS[accel])
            except StageError as error:
                raise _NotUpError(f"the first system did not come up under {accel}: {error.sentence}") from error
            progress("loading the capture kernel")
            said = guest.wait_for("^rehearsal: (?:crashes|FAILED: (.*))", _LOAD_SECONDS)
            if said[1] is not None:
                raise StageError(f"the pair could not be loaded: {said[1].strip()}")
            progress("crashed; the capture kernel is at work")
            failed = ""
            while True:
                try:
                    end = guest.wait_for(_END, _CAPTURE_SECONDS)
                except StageError as error:
                    raise StageError(f"the capture came to no end: {failed or error.sentence}") from error
                if end[4] is not None:
                    raise StageError(f"the capture kernel panicked: {end[4]}")
                if end[3] is not None:
                    failed = end[3]
                    continue
                if end[1] == "failure action":
                    raise StageError(f"the capture failed: {failed or 'it does not say why'}")
                break
            # What is to halt stays on; its disks were unmounted before that is said, or are within these seconds.
            with contextlib.suppress(StageError):
                guest.wait_ended(20.0 if end[2] == "halt" else 120.0)

    def read(self, accel: str) -> None:
        """Has the first system hand over what lies on the scratch disk. Raises StageError."""
        with self._machine(accel, "rehearsal=read") as guest:
            said = guest.wait_for("^rehearsal: (?:given|FAILED: (.*))", _READ_SECONDS)
            if said[1] is not None:
                raise StageError(said[1].strip())
            guest.wait_ended(60.0)

    def found(self) -> Crash:
        """The crash that was handed over, once it has passed its checks. Raises StageError."""
        folder = self._place / "found"
        unpack(self._exchange, folder)
        return check(folder, self._wanted.image_id, self._marker)


def _sizes(reserved_bytes: int) -> tuple[int, int]:
    """MiB of the scratch machine, and of its reservation. Raises KdumpError when this machine has less to give."""
    reserved = min(max(reserved_bytes >> 20, LEAST_RESERVED_MIB), MOST_RESERVED_MIB)
    memory = reserved + FIRST_MIB
    # Whatever root facts are read below: QEMU runs here.
    available = parse_meminfo(read_text(Path("/"), "/proc/meminfo") or "").get("MemAvailable", 0) >> 20
    if available < memory + _SPARE_MIB:
        raise KdumpError(
            f"A rehearsal takes {memory + _SPARE_MIB} MiB of memory, and {available} MiB are available",
            hint="try again when less runs on this machine",
        )
    return memory, reserved


@contextlib.contextmanager
def _folder(parent: Path, memory_mib: int) -> Iterator[Path]:
    """A folder of one's own in `parent`, 0700, removed at the end. Raises KdumpError."""
    wanted = (memory_mib + _LEAST_DISK_MIB) << 20
    try:
        free = shutil.disk_usage(parent).free
        if free < wanted:
            raise KdumpError(
                f"A rehearsal takes up to {wanted >> 20} MiB in {parent}, and {free >> 20} MiB are free",
                hint=f"df -h {parent}",
            )
        place = Path(tempfile.mkdtemp(prefix="kdumpd-rehearsal-", dir=parent))
    except OSError as error:
        raise KdumpError(f"There is no place for a rehearsal in {parent}: {os_reason(error)}") from error
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)
