# SPDX-License-Identifier: GPL-2.0-or-later
"""What kdump.conf says, as frozen facts: `Config` is what a person wrote.

`capture.CaptureConfig` is what the capture kernel gets: the same after the host has resolved it (which block device,
which filesystem, which folder).
"""

from __future__ import annotations

import dataclasses
import enum
from typing import Any

from kdumpd.config.targets import Target

DEFAULT_PATH = "/var/crash"


class Action(enum.StrEnum):
    """What the machine does when the capture is over (kdump.conf(5): final_action, failure_action)."""

    REBOOT = "reboot"
    HALT = "halt"
    POWEROFF = "poweroff"


class OnUnload(enum.StrEnum):
    """What the service does when somebody unloads the capture kernel past it (kdump.conf(5): on_unload)."""

    RELOAD = "reload"
    REPORT = "report"


class KexecSyscall(enum.StrEnum):
    """Which system call loads the capture kernel (kdump.conf(5): kexec_syscall)."""

    AUTO = "auto"
    KEXEC_FILE_LOAD = "kexec_file_load"
    KEXEC_LOAD = "kexec_load"


class Compression(enum.StrEnum):
    """How each page of a kdump-compressed dump is packed. lzo and snappy need a library of their own."""

    NONE = "none"
    ZLIB = "zlib"
    LZO = "lzo"
    SNAPPY = "snappy"
    ZSTD = "zstd"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DumpSettings:
    """What a dump is to be like; the defaults are makedumpfile's.

    `levels` are dump levels from 0 to 31: the first is wanted, the next ones are for when the target is too small.
    `compression_level` None leaves it to the collector, as `threads` None or 0 does with one a cpu. `elf` and
    `flattened` are other formats than kdump-compressed, and may come together.
    """

    levels: tuple[int, ...] = (0,)
    compression: Compression = Compression.NONE
    compression_level: int | None = None
    threads: int | None = None
    elf: bool = False
    flattened: bool = False
    checksums: bool = True
    verify: bool = True

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> DumpSettings:
        """Reads what dataclasses.asdict and JSON made of it. Raises ValueError, TypeError or KeyError."""
        levels = tuple(raw["levels"])
        if not levels or not all(isinstance(level, int) and 0 <= level <= 31 for level in levels):
            raise ValueError(f"levels are {raw['levels']!r}")
        for name in ("compression_level", "threads"):
            if not isinstance(raw[name], int | None):
                raise TypeError(f"{name} is not a number")
        flags = ("elf", "flattened", "checksums", "verify")
        if not all(isinstance(raw[name], bool) for name in flags):
            raise TypeError(f"one of {', '.join(flags)} is neither true nor false")
        fields = {field.name: raw[field.name] for field in dataclasses.fields(cls)}
        return cls(**{**fields, "levels": levels, "compression": Compression(raw["compression"])})


# What a machine does whose kdump.conf says nothing of it.
DEFAULT_DUMP = DumpSettings(levels=(31,), compression=Compression.ZSTD)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One complaint about kdump.conf. `fatal` problems keep the file from being used for arming."""

    file: str
    line: int
    message: str
    fatal: bool

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.message}"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """kdump.conf and its drop-ins, merged.

    `targets` are tried in their order; without one it is the filesystem that holds `path`. `sshkey` is the file of the
    private key for ssh targets, None for kdumpd's own. `encrypt_to` are public keys of age.

    The last fields are about loading: `commandline` stands in for the running kernel's, `nr_cpus` is None for the
    service's own choice.
    """

    targets: tuple[Target, ...] = ()
    path: str = DEFAULT_PATH
    sshkey: str | None = None
    dump: DumpSettings = DEFAULT_DUMP
    final_action: Action = Action.REBOOT
    failure_action: Action = Action.REBOOT
    encrypt_to: tuple[str, ...] = ()
    on_unload: OnUnload = OnUnload.RELOAD
    kexec_syscall: KexecSyscall = KexecSyscall.AUTO
    commandline: str | None = None
    commandline_remove: tuple[str, ...] = ()
    commandline_append: str = ""
    nr_cpus: int | None = None
    problems: tuple[Problem, ...] = ()

    @property
    def errors(self) -> tuple[Problem, ...]:
        """The problems that keep this configuration from being used."""
        return tuple(problem for problem in self.problems if problem.fatal)
