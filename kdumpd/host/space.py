# SPDX-License-Identifier: GPL-2.0-or-later
"""Is there room for a dump? Free bytes of a mounted filesystem, and how much of memory a dump would hold."""

from __future__ import annotations

import os
import re
from pathlib import Path

from kdumpd.host import blockdev
from kdumpd.host.files import below, read_text
from kdumpd.host.mounts import Mount

_FIELD = re.compile(r"^(\w+):\s*(\d+) kB", re.MULTILINE)
# makedumpfile's dump levels: each bit leaves one kind of pages out.
_CACHE = 2 | 4
_USER = 8
_FREE = 16


def parse_meminfo(text: str) -> dict[str, int]:
    """The fields of /proc/meminfo in bytes."""
    return {name: int(kilobytes) * 1024 for name, kilobytes in _FIELD.findall(text)}


def dump_bytes(meminfo: dict[str, int], level: int) -> int:
    """How much memory a dump of `level` would keep at this moment, before it is compressed."""
    left_out = 0
    if level & _FREE:
        left_out += meminfo.get("MemFree", 0)
    if level & _CACHE:
        # Pages of tmpfs count as cache here, but anonymous memory of them stays in a dump.
        left_out += max(0, meminfo.get("Cached", 0) - meminfo.get("Shmem", 0)) + meminfo.get("Buffers", 0)
    if level & _USER:
        left_out += meminfo.get("AnonPages", 0)
    return max(0, meminfo.get("MemTotal", 0) - left_out)


def read_dump_bytes(level: int, root: Path = Path("/")) -> int:
    """`dump_bytes` of this moment; 0 when it cannot be known."""
    return dump_bytes(parse_meminfo(read_text(root, "/proc/meminfo") or ""), level)


def free_bytes(mounts: tuple[Mount, ...], block: str, root: Path = Path("/")) -> int | None:
    """What root may still write to the filesystem on the block device `block`; None while it is not mounted."""
    for mount in mounts:
        if blockdev.block_by_number(mount.device_number, root) == block:
            try:
                found = os.statvfs(below(root, mount.mountpoint))
            except OSError:
                continue  # seen in mountinfo, yet hidden from this process
            return found.f_bfree * found.f_frsize
    return None
