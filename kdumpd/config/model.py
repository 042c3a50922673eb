# SPDX-License-Identifier: GPL-2.0-or-later
"""What kdump.conf says, as frozen facts: `Config` is what a person wrote.

`capture.CaptureConfig` is what the capture kernel gets: the same after the host has resolved it (which block device,
which filesystem, which folder).
"""

from __future__ import annotations

import dataclasses
import enum
from typing import Any

from kdumpd.config.kexec_syscall import KexecSyscall
from kdumpd.config.layout import Layout
from kdumpd.config.targets import Target

DEFAULT_PATH = "/var/crash"


class Action(enum.StrEnum):
    """What the machine does when the capture is over (kdump.conf(5)): the first three as final_action, all of them as
    failure_action."""

    REBOOT = "reboot"
    HALT = "halt"
    POWEROFF = "poweroff"
    SHELL = "shell"
    DUMP_TO_ROOTFS = "dump_to_rootfs"


FINAL_ACTIONS = (Action.REBOOT, Action.HALT, Action.POWEROFF)


class OnUnload(enum.StrEnum):
    """What the service does when somebody unloads the capture kernel past it (kdump.conf(5): on_unload)."""

    RELOAD = "reload"
    REPORT = "report"


class Builder(enum.StrEnum):
    """What makes the capture image (kdump.conf(5): builder)."""

    BUSYBOX = "busybox"
    DRACUT = "dracut"
    INITRAMFS_TOOLS = "initramfs-tools"


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
    `flattened` are other formats than kdump-compressed, and may come together. `keep_free_bytes`, and
    `keep_free_percent` of what is free when the capture begins, are left free on the target. `external` are the words
    of another program that makes the dump; then of all this only `verify` and `checksums` count.
    """

    levels: tuple[int, ...] = (0,)
    compression: Compression = Compression.NONE
    compression_level: int | None = None
    threads: int | None = None
    elf: bool = False
    flattened: bool = False
    checksums: bool = True
    verify: bool = True
    keep_free_bytes: int = 0
    keep_free_percent: int = 0
    external: tuple[str, ...] = ()

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> DumpSettings:
        """Reads what dataclasses.asdict and JSON made of it. Raises ValueError, TypeError or KeyError."""
        levels = tuple(raw["levels"])
        if not levels or not all(isinstance(level, int) and 0 <= level <= 31 for level in levels):
            raise ValueError(f"levels are {raw['levels']!r}")
        for name in ("compression_level", "threads"):
            if not isinstance(raw[name], int | None):
                raise TypeError(f"{name} is not a number")
        for name in ("keep_free_bytes", "keep_free_percent"):
            if not isinstance(raw[name], int) or raw[name] < 0:
                raise TypeError(f"{name} is not a size")
        flags = ("elf", "flattened", "checksums", "verify")
        if not all(isinstance(raw[name], bool) for name in flags):
            raise TypeError(f"one of {', '.join(flags)} is neither true nor false")
        external = tuple(raw["external"])
        if not all(isinstance(word, str) for word in external):
            raise TypeError("external is not a list of words")
        fields = {field.name: raw[field.name] for field in dataclasses.fields(cls)}
        return cls(**{**fields, "external": external, "levels": levels, "compression": Compression(raw["compression"])})


# What a machine does whose kdump.conf says nothing of it.
DEFAULT_DUMP = DumpSettings(levels=(31,), compression=Compression.ZSTD)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Deadlines:
    """Seconds that may pass in the capture kernel.

    `total_sec` is for the whole capture from the start of the supervisor on; `target_sec` for one target of the chain,
    None for equal shares; `network_sec` until a network is up; `stall_sec` without a sign of life of the collector;
    `hook_sec` for each program of the administrator's; `shell_sec` for the shell of failure_action, 0 without an end.
    """

    total_sec: int = 3600
    target_sec: int | None = None
    network_sec: int = 60
    stall_sec: int = 120
    hook_sec: int = 60
    shell_sec: int = 300

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> Deadlines:
        """Reads what dataclasses.asdict and JSON made of it. Raises TypeError or KeyError."""
        fields = {field.name: raw[field.name] for field in dataclasses.fields(cls)}
        for name, value in fields.items():
            if isinstance(value, bool) or not (isinstance(value, int) or (value is None and name == "target_sec")):
                raise TypeError(f"{name} is not a number")
        return cls(**fields)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Hooks:
    """Programs of the administrator's that the supervisor runs, as paths, in their order.

    `pre` are those of pre.d and so on; the others are of the directives, one each or none.
    """

    kdump_pre: tuple[str, ...] = ()
    pre: tuple[str, ...] = ()
    post: tuple[str, ...] = ()
    kdump_post: tuple[str, ...] = ()
    emergency: tuple[str, ...] = ()
    kdump_emergency: tuple[str, ...] = ()

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> Hooks:
        """Reads what dataclasses.asdict and JSON made of it. Raises TypeError or KeyError."""
        fields = {field.name: tuple(raw[field.name]) for field in dataclasses.fields(cls)}
        if not all(isinstance(path, str) for paths in fields.values() for path in paths):
            raise TypeError("a hook is not text")
        return cls(**fields)

    @property
    def programs(self) -> tuple[str, ...]:
        """All of them, each once."""
        return tuple(dict.fromkeys(path for field in dataclasses.fields(self) for path in getattr(self, field.name)))


DEFAULT_DEADLINES = Deadlines()
NO_HOOKS = Hooks()


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
    private key for ssh targets, None for kdumpd's own. `encrypt_to` are public keys of age. `fence_nodes` are other
    nodes of a cluster, which fence_kdump_send(8) tells, with `fence_args`, that this one is dumping. `kdump_pre`,
    `kdump_post` and `kdump_emergency` are programs that run before, after and when no dump was made; `extra_bins` and
    `extra_modules` are to be in the image too. `keep_crashes` and `keep_days` say which dumps may be removed once
    there are newer ones; None for none.

    The last fields are about loading and building: `commandline` stands in for the running kernel's, `nr_cpus` is None
    for the service's own choice; `dracut_args` are words for dracut(8), which count only with that builder.
    """

    targets: tuple[Target, ...] = ()
    path: str = DEFAULT_PATH
    sshkey: str | None = None
    dump: DumpSettings = DEFAULT_DUMP
    final_action: Action = Action.REBOOT
    failure_action: Action = Action.REBOOT
    encrypt_to: tuple[str, ...] = ()
    deadlines: Deadlines = DEFAULT_DEADLINES
    fence_nodes: tuple[str, ...] = ()
    fence_args: tuple[str, ...] = ()
    kdump_pre: str | None = None
    kdump_post: str | None = None
    kdump_emergency: str | None = None
    extra_bins: tuple[str, ...] = ()
    extra_modules: tuple[str, ...] = ()
    keep_crashes: int | None = None
    keep_days: int | None = None
    layout: Layout = Layout.KDUMPD
    force_no_rebuild: bool = False
    on_unload: OnUnload = OnUnload.RELOAD
    kexec_syscall: KexecSyscall = KexecSyscall.AUTO
    commandline: str | None = None
    commandline_remove: tuple[str, ...] = ()
    commandline_append: str = ""
    nr_cpus: int | None = None
    builder: Builder = Builder.BUSYBOX
    dracut_args: tuple[str, ...] = ()
    problems: tuple[Problem, ...] = ()

    @property
    def builder_args(self) -> tuple[str, ...]:
        """The words for the tool that makes the image."""
        return self.dracut_args if self.builder is Builder.DRACUT else ()

    @property
    def errors(self) -> tuple[Problem, ...]:
        """The problems that keep this configuration from being used."""
        return tuple(problem for problem in self.problems if problem.fatal)
