# SPDX-License-Identifier: GPL-2.0-or-later
"""A disk without a filesystem has no label: it is known by its serial number, its size and the number of its partition.

Both kernels read these from sysfs, where they do not depend on the order in which disks are found.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

# World-wide names first; virtio disks only have a serial number, which may be the same on two of them.
_NAMES = ("wwid", "device/wwid", "serial", "device/serial")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DiskIdentity:
    """`name` is what the disk calls itself, empty where it says nothing; `partition` its number, 0 for a whole disk;
    `sectors` are of 512 bytes.
    """

    name: str
    partition: int
    sectors: int


def read_identity(block: str, root: Path = Path("/")) -> DiskIdentity | None:
    """What tells the block device `block` (a name in /sys/class/block) from others; None when it is gone, or hidden: a
    path to an NVMe disk that has several, or may have, calls itself as the disk does, and nobody can open it
    (Documentation/ABI/stable/sysfs-block)."""
    link = root / "sys/class/block" / block
    if not link.exists():
        return None
    here = link.resolve()
    partition = _text(here / "partition")
    disk = here.parent if partition else here
    if _text(disk / "hidden") == "1":
        return None
    names = (_text(disk / name) for name in _NAMES)
    sectors = _text(here / "size")
    return DiskIdentity(
        name=next((name for name in names if name), ""),
        partition=int(partition) if partition.isdecimal() else 0,
        sectors=int(sectors) if sectors.isdecimal() else 0,
    )


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""  # sysfs attributes come and go with the device
