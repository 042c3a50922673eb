# SPDX-License-Identifier: GPL-2.0-or-later
"""The words the service speaks in: facts, rungs of the ladder, reasons. No behaviour, no reading, no deciding."""

from __future__ import annotations

import dataclasses
import enum
from pathlib import Path

from kdumpd.config.kexec_syscall import KexecSyscall
from kdumpd.config.model import Problem
from kdumpd.host.crashkernel import Expectation
from kdumpd.host.machine import Machine
from kdumpd.host.nextboot import NextBoot
from kdumpd.host.reservation import MemoryRange
from kdumpd.host.security import Security
from kdumpd.host.sysctl import Triggers
from kdumpd.host.topology import Topology
from kdumpd.service.estimate import Need


class Rung(enum.StrEnum):
    """The state ladder, from the bottom up. docs/STATE.md describes each rung."""

    UNSUPPORTED = "unsupported"
    NOT_RESERVED = "not-reserved"
    RESERVED_TOO_SMALL = "reserved-too-small"
    IMAGE_MISSING = "image-missing"
    IMAGE_STALE = "image-stale"
    UNLOADED = "unloaded"
    LOADED = "loaded"
    LOADED_STALE = "loaded-stale"
    REHEARSED = "rehearsed"
    PROVEN = "proven"

    @property
    def armed(self) -> bool:
        """True where a crash now starts a capture kernel of ours that should succeed."""
        return self in (Rung.LOADED, Rung.LOADED_STALE, Rung.REHEARSED, Rung.PROVEN)


class Code(enum.StrEnum):
    """Names of reasons; each has a line in docs/STATE.md."""

    KEXEC_MISSING = "kexec-missing"
    ARCH_UNSUPPORTED = "arch-unsupported"
    FADUMP_ACTIVE = "fadump-active"
    CRASHKERNEL_MISSING = "crashkernel-missing"
    CRASHKERNEL_IGNORED = "crashkernel-ignored"
    RESERVATION_TOO_SMALL = "reservation-too-small"
    CONFIG_ERROR = "config-error"
    CONFIG_WARNING = "config-warning"
    TARGET_UNUSABLE = "target-unusable"
    TARGET_UNREACHABLE = "target-unreachable"
    TARGET_LOCKED = "target-locked-in-capture"
    KERNEL_NOT_FOUND = "kernel-not-found"
    IMAGE_MISSING = "image-missing"
    IMAGE_STALE = "image-stale"
    IMAGE_DAMAGED = "image-damaged"
    BUILD_FAILED = "build-failed"
    LOAD_FAILED = "load-failed"
    UNLOAD_FAILED = "unload-failed"
    LOADING_DISABLED = "loading-disabled"
    LOAD_LIMIT_REACHED = "load-limit-reached"
    NOT_LOADED = "not-loaded"
    HELD = "held"
    UNLOADED_BY_OTHER = "unloaded-by-other"
    LOADED_BY_OTHER = "loaded-by-other"
    LOAD_INTERRUPTED = "load-interrupted"
    OLD_IMAGE_LOADED = "old-image-loaded"
    HARDWARE_CHANGED = "hardware-changed"
    OLD_SETTINGS_LOADED = "old-settings-loaded"
    NOT_PROVEN = "not-proven"
    REHEARSAL_FAILED = "rehearsal-failed"
    NEXT_BOOT_UNRESERVED = "next-boot-unreserved"
    NEXT_BOOT_DIFFERS = "next-boot-differs"
    CMA_IGNORED = "cma-ignored"
    TARGET_SPACE_LOW = "target-space-low"
    TARGET_DEGRADED = "target-degraded"
    RAW_WAITING = "raw-waiting"
    IMAGE_APPRAISED = "image-appraised"
    OOPS_NOT_CAPTURED = "oops-not-captured"
    CRASH_WITHOUT_DUMP = "crash-without-dump"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Reason:
    """Why the state is what it is. `cure` is a command or an act, empty when there is none."""

    code: Code
    sentence: str
    cure: str = ""

    def __str__(self) -> str:
        return f"{self.sentence} ({self.cure})" if self.cure else self.sentence


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """The judgement: a rung and, with the most important first, its reasons."""

    rung: Rung
    reasons: tuple[Reason, ...] = ()

    @property
    def headline(self) -> str:
        """One line for STATUS= and the journal."""
        words = f"{'armed' if self.rung.armed else 'not armed'} ({self.rung})"
        return f"{words}: {self.reasons[0]}" if self.reasons else words


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """The last build, load or unload that failed, kept until one succeeds.

    `refused` names what the kernel will not take however often it is tried (see `Facts.wanted`), if that is the cause.
    """

    code: Code
    sentence: str
    cure: str = ""
    refused: str = ""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """The capture image of the running kernel. `stale` and `damaged` are sentences, None when all is well.
    `kernel_sha256` is of the kernel that it was built for, which is not in it.
    """

    path: Path
    present: bool = False
    image_id: str | None = None
    sha256: str = ""
    kernel_sha256: str = ""
    packed_bytes: int | None = None
    unpacked_bytes: int | None = None
    modules_bytes: int | None = None
    stale: str | None = None
    damaged: str | None = None

    @property
    def usable(self) -> bool:
        """True when there is an image that could be loaded, be it stale."""
        return self.present and self.damaged is None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LoadedRecord:
    """What the service loaded in this boot; /run/kdumpd/loaded.json.

    `cpus` and `memory` are those of the machine at that moment (see `host.topology`), empty when they are not known.
    Kernel and image are named by the kept files. `keys` are descriptions, with blanks between, of the keys that the
    capture kernel has for encrypted targets.
    """

    boot_id: str
    release: str
    image_id: str
    kernel: str
    initrd: str
    initrd_sha256: str
    cmdline: str
    loaded_usec: int
    cpus: str = ""
    memory: str = ""
    kernel_sha256: str = ""
    syscall: str = KexecSyscall.AUTO.value
    keys: str = ""


class Held(enum.StrEnum):
    """Why the capture kernel is not loaded again by itself."""

    REQUEST = "request"  # a person called Unload
    OTHER = "other"  # somebody unloaded it past the service, and kdump.conf says on_unload report


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LastCapture:
    """The newest crash that was captured. Microseconds of CLOCK_REALTIME, bytes.

    `peak_rss_bytes` is the most that the collector had, `lowest_available_bytes` the least that was free meanwhile.
    """

    result: str
    time_usec: int | None = None
    dump_bytes: int | None = None
    peak_rss_bytes: int | None = None
    lowest_available_bytes: int | None = None

    def measured(self) -> dict[str, int]:
        """The memory of the capture, by name, as far as it is known."""
        sizes = {"peak_rss_bytes": self.peak_rss_bytes, "lowest_available_bytes": self.lowest_available_bytes}
        return {name: size for name, size in sizes.items() if size is not None}

    def known(self) -> dict[str, str | int]:
        """What there is to say, by name."""
        return {name: value for name, value in dataclasses.asdict(self).items() if value is not None}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LastTest:
    """The last crash on purpose. `time_usec` is of CLOCK_REALTIME, `outcome` missing or the result of `crash`."""

    id: str
    time_usec: int
    outcome: str
    crash: str = ""

    def known(self) -> dict[str, str | int]:
        """What there is to say, by name."""
        return {name: value for name, value in dataclasses.asdict(self).items() if value != ""}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LastRehearsal:
    """The last rehearsal in a scratch machine, of the pair that the sums and the command line name.

    `problem` says why no dump came of it, empty when one did. `exchanged` are half sentences on what was not as in this
    machine. `time_usec` is of CLOCK_REALTIME; sizes are bytes, 0 where they are not known.
    """

    release: str
    image_id: str
    initrd_sha256: str
    kernel_sha256: str
    cmdline: str
    time_usec: int
    seconds: float
    accel: str
    problem: str = ""
    exchanged: tuple[str, ...] = ()
    reserved_bytes: int = 0
    dump_bytes: int = 0
    lowest_available_bytes: int = 0

    def is_of(self, loaded: LoadedRecord) -> bool:
        """True for the very kernel, image and command line that are loaded."""
        mine = (self.image_id, self.initrd_sha256, self.kernel_sha256, self.cmdline)
        # A kernel whose sum nobody knows is no kernel that was tried.
        return mine == (loaded.image_id, loaded.initrd_sha256, loaded.kernel_sha256 or None, loaded.cmdline)

    def known(self) -> dict[str, str | int]:
        """What there is to say, by name."""
        fields: dict[str, str | int] = {
            "outcome": "failed" if self.problem else "complete",
            "image_id": self.image_id,
            "time_usec": self.time_usec,
            "took_usec": int(self.seconds * 1e6),
            "problem": self.problem,
            "exchanged": "; ".join(self.exchanged),
            "dump_bytes": self.dump_bytes,
            "lowest_available_bytes": self.lowest_available_bytes,
        }
        return {name: value for name, value in fields.items() if value not in ("", 0)}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What is worth knowing, and where it bodes ill a reason, but decides no rung of its own (fadump and topology do).

    `cma_missing` means that the command line asks for ,cma and the kernel set no such area aside. `image_appraised`
    means that IMA wants a signature on the image. `free_bytes` is of the first target, None while it is not mounted or
    nobody knows, and `dump_bytes` what a dump would hold now before it is compressed, 0 when unknown.
    `target_troubles` are those of targets that cannot be used, where another one can; `unreachable` those of servers
    where no target is left. `raw_waiting` names crashes that lie on raw devices.
    """

    next_boot: NextBoot = dataclasses.field(default_factory=NextBoot)
    triggers: Triggers = dataclasses.field(default_factory=Triggers)
    topology: Topology = dataclasses.field(default_factory=Topology)
    ranges: tuple[MemoryRange, ...] = ()
    fadump: bool = False
    cma_missing: bool = False
    image_appraised: bool = False
    free_bytes: int | None = None
    dump_bytes: int = 0
    target_troubles: tuple[Trouble, ...] = ()
    unreachable: tuple[Trouble, ...] = ()
    raw_waiting: tuple[str, ...] = ()
    last_capture: LastCapture | None = None
    last_test: LastTest | None = None
    last_rehearsal: LastRehearsal | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Trouble:
    """A fact that could not be had: the sentence and hint of the error that came instead, and its code if any."""

    sentence: str
    hint: str = ""
    code: Code | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """All that `decide` looks at, gathered at one moment.

    `crash_loaded` is None on a kernel without crash kexec. `loaded` is our own record of this boot, None when the
    kernel holds nothing or something of somebody else. `proven_images` are the ids of images that delivered a
    complete dump. `missed` is what shows a crash that left no dump. `cmdline` is what the capture kernel
    would be told if it were loaded now, empty when nobody knows; `crypt_keys` are what it would be given (as
    LoadedRecord.keys). `no_rebuild` is an administrator who builds images himself.
    """

    machine: Machine
    crash_loaded: bool | None
    syscall_known: bool
    crashkernel: str
    expectation: Expectation
    reserved_bytes: int
    need: Need
    security: Security
    problems: tuple[Problem, ...]
    kernel: Path | None
    kernel_trouble: Trouble | None
    target_trouble: Trouble | None
    image: Image
    loaded: LoadedRecord | None
    load_interrupted: bool
    proven_images: frozenset[str]
    held: Held | None
    failure: Failure | None
    around: Surroundings = dataclasses.field(default_factory=Surroundings)
    missed: str = ""
    no_rebuild: bool = False
    cmdline: str = ""
    kexec_syscall: KexecSyscall = KexecSyscall.AUTO
    crypt_keys: str = ""

    @property
    def wanted(self) -> str:
        """What a load would load now: image, kernel and command line."""
        return f"{self.image.image_id} {self.image.kernel_sha256} {self.cmdline}"

    @property
    def newer_pair(self) -> bool:
        """True when the image, or the kernel that it was built for, is another one than what is loaded."""
        image, loaded = self.image, self.loaded
        if loaded is None:
            return False
        # A kernel of the same name may be replaced without a change to any file of the image.
        other_kernel = image.kernel_sha256 and loaded.kernel_sha256 not in ("", image.kernel_sha256)
        return image.image_id != loaded.image_id or bool(other_kernel)

    @property
    def settings_changed(self) -> bool:
        """True when what is loaded would get another command line, or be loaded in another way, now."""
        if self.loaded is None or self.config_errors or not self.cmdline:
            return False
        loaded, wanted = self.loaded, (self.cmdline, self.kexec_syscall.value, self.crypt_keys)
        return (loaded.cmdline, loaded.syscall, loaded.keys) != wanted

    @property
    def required_bytes(self) -> int:
        """What a capture is estimated to need."""
        return self.need.total_bytes

    @property
    def config_errors(self) -> tuple[Problem, ...]:
        """Problems that keep kdump.conf from being used."""
        return tuple(problem for problem in self.problems if problem.fatal)

    @property
    def changed_hardware(self) -> tuple[str, ...]:
        """What the loaded capture kernel does not know of, and the kernel does not mend by itself."""
        record, now = self.loaded, self.around.topology
        if record is None:
            return ()
        changed = []
        if record.cpus and now.cpus and record.cpus != now.cpus and not now.cpus_handled:
            changed.append("processors")
        if record.memory and now.memory and record.memory != now.memory and not now.memory_handled:
            changed.append("memory")
        return tuple(changed)
