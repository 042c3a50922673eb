# SPDX-License-Identifier: GPL-2.0-or-later
"""What kdump.conf says, as frozen facts.

`Config` is what a person wrote. `CaptureConfig` is what the capture kernel gets: the same after the host
has resolved it (which block device, which filesystem, which folder), because the capture kernel must
not have to guess. It travels in the image as JSON, so that the file is parsed once, on the host.
"""

from __future__ import annotations

import dataclasses
import enum
import json
from typing import Any

from kdumpd.errors import ConfigError

DEFAULT_PATH = "/var/crash"
DEFAULT_LEVEL = 31


class Action(enum.StrEnum):
    """What the machine does when the capture is over (kdump.conf(5): final_action, failure_action)."""

    REBOOT = "reboot"
    HALT = "halt"
    POWEROFF = "poweroff"


class Compression(enum.StrEnum):
    """How each page of a kdump-compressed dump is packed."""

    NONE = "none"
    ZLIB = "zlib"
    LZO = "lzo"
    SNAPPY = "snappy"
    ZSTD = "zstd"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LocalTarget:
    """A filesystem on a block device: `ext4 UUID=...` in kdump.conf.

    `device` is a path below /dev, `LABEL=...` or `UUID=...`.
    """

    fstype: str
    device: str


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
    """kdump.conf and its drop-ins, merged. Without a `target` it is the filesystem that holds `path`."""

    target: LocalTarget | None = None
    path: str = DEFAULT_PATH
    level: int = DEFAULT_LEVEL
    compression: Compression = Compression.ZSTD
    final_action: Action = Action.REBOOT
    failure_action: Action = Action.REBOOT
    problems: tuple[Problem, ...] = ()

    @property
    def errors(self) -> tuple[Problem, ...]:
        """The problems that keep this configuration from being used."""
        return tuple(problem for problem in self.problems if problem.fatal)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CaptureConfig:
    """All that the collector has to know in the capture kernel; `/etc/kdumpd/capture.json` of the image.

    `directory` is the folder for crashes *inside* the target filesystem, e.g. "/crash" where the host
    sees /var/crash on a separate /var. `kernel` is the release of the kernel this image was made for.
    """

    hostname: str
    kernel: str
    device: str
    fstype: str
    directory: str
    level: int
    compression: Compression
    final_action: Action
    failure_action: Action

    def to_json(self) -> str:
        """Stable text: sorted keys, one line per key, so that equal configurations are equal bytes."""
        return json.dumps(dataclasses.asdict(self), indent=1, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str, source: str) -> CaptureConfig:
        """Reads what `to_json` wrote. Raises ConfigError naming `source` for anything else."""
        try:
            raw: dict[str, Any] = json.loads(text)
            fields = {field.name: raw[field.name] for field in dataclasses.fields(cls)}
            if not isinstance(fields["level"], int):
                raise TypeError("level is not a number")
            for name in ("hostname", "kernel", "device", "fstype", "directory"):
                if not isinstance(fields[name], str):
                    raise TypeError(f"{name} is not text")
            fields["compression"] = Compression(fields["compression"])
            fields["final_action"] = Action(fields["final_action"])
            fields["failure_action"] = Action(fields["failure_action"])
            return cls(**fields)
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"{source}: not a capture configuration: {error!r}",
                hint="rebuild the image: kdumpctl rebuild",
            ) from error
