# SPDX-License-Identifier: GPL-2.0-or-later
"""The words the service speaks in: facts, rungs of the ladder, reasons. No behaviour, no reading, no deciding."""

from __future__ import annotations

import dataclasses
import enum
from pathlib import Path

from kdumpd.config.model import Problem
from kdumpd.host.crashkernel import Expectation
from kdumpd.host.machine import Machine
from kdumpd.host.security import Security
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
    REHEARSED = "rehearsed"  # earned by booting the image in a scratch machine; nothing in this version does so
    PROVEN = "proven"

    @property
    def armed(self) -> bool:
        """True where a crash now starts a capture kernel of ours that should succeed."""
        return self in (Rung.LOADED, Rung.LOADED_STALE, Rung.REHEARSED, Rung.PROVEN)


class Code(enum.StrEnum):
    """Names of reasons; each has a line in docs/STATE.md."""

    KEXEC_MISSING = "kexec-missing"
    ARCH_UNSUPPORTED = "arch-unsupported"
    CRASHKERNEL_MISSING = "crashkernel-missing"
    CRASHKERNEL_IGNORED = "crashkernel-ignored"
    RESERVATION_TOO_SMALL = "reservation-too-small"
    CONFIG_ERROR = "config-error"
    CONFIG_WARNING = "config-warning"
    TARGET_UNUSABLE = "target-unusable"
    KERNEL_NOT_FOUND = "kernel-not-found"
    IMAGE_MISSING = "image-missing"
    IMAGE_STALE = "image-stale"
    IMAGE_DAMAGED = "image-damaged"
    BUILD_FAILED = "build-failed"
    LOAD_FAILED = "load-failed"
    UNLOAD_FAILED = "unload-failed"
    LOADING_DISABLED = "loading-disabled"
    NOT_LOADED = "not-loaded"
    HELD = "held"
    LOADED_BY_OTHER = "loaded-by-other"
    LOAD_INTERRUPTED = "load-interrupted"
    OLD_IMAGE_LOADED = "old-image-loaded"
    NOT_PROVEN = "not-proven"


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
    """The last build, load or unload that failed, kept until one succeeds."""

    code: Code
    sentence: str
    cure: str = ""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """The capture image of the running kernel. `stale` and `damaged` are sentences, None when all is well."""

    path: Path
    present: bool = False
    image_id: str | None = None
    sha256: str = ""
    packed_bytes: int | None = None
    unpacked_bytes: int | None = None
    stale: str | None = None
    damaged: str | None = None

    @property
    def usable(self) -> bool:
        """True when there is an image that could be loaded, be it stale."""
        return self.present and self.damaged is None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LoadedRecord:
    """What the service loaded in this boot; /run/kdumpd/loaded.json."""

    boot_id: str
    release: str
    image_id: str
    kernel: str
    initrd: str
    initrd_sha256: str
    cmdline: str
    loaded_usec: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Trouble:
    """A fact that could not be had: the sentence and hint of the error that came instead."""

    sentence: str
    hint: str = ""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """All that `decide` looks at, gathered at one moment.

    `crash_loaded` is None on a kernel without crash kexec. `loaded` is our own record of this boot, None when the
    kernel holds nothing or something of somebody else. `proven_images` are the ids of images that delivered a
    complete dump. `held` means that a person asked for the capture kernel to be unloaded.
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
    held: bool
    failure: Failure | None

    @property
    def required_bytes(self) -> int:
        """What a capture is estimated to need."""
        return self.need.total_bytes

    @property
    def config_errors(self) -> tuple[Problem, ...]:
        """Problems that keep kdump.conf from being used."""
        return tuple(problem for problem in self.problems if problem.fatal)
