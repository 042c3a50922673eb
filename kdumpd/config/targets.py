# SPDX-License-Identifier: GPL-2.0-or-later
"""Where dumps are to go, in the words of kdump.conf; `capture` has the same after the host has looked at it."""

from __future__ import annotations

import dataclasses
from typing import TypeAlias

# The first bytes of a block device that dumps are written to without a filesystem (docs/FORMATS.md).
RAW_MAGIC = b"kdumpd-raw-disk\0"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LocalTarget:
    """A filesystem on a block device: `ext4 UUID=...` in kdump.conf.

    `device` is a path below /dev, `LABEL=...` or `UUID=...`.
    """

    fstype: str
    device: str

    def __str__(self) -> str:
        return f"{self.fstype} {self.device}"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RawTarget:
    """A block device without a filesystem: `raw /dev/...`."""

    device: str

    def __str__(self) -> str:
        return f"raw {self.device}"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class NfsTarget:
    """A folder that a server exports: `nfs host:/export`. `server` is a name or an address, IPv6 without brackets."""

    server: str
    export: str

    def __str__(self) -> str:
        host = f"[{self.server}]" if ":" in self.server else self.server
        return f"nfs {host}:{self.export}"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SshTarget:
    """An account on another machine: `ssh user@host`. `host` is a name or an address, IPv6 without brackets."""

    user: str
    host: str
    port: int = 22

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"ssh {self.user}@{host}" + (f":{self.port}" if self.port != 22 else "")


Target: TypeAlias = LocalTarget | RawTarget | NfsTarget | SshTarget
