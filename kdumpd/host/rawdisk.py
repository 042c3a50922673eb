# SPDX-License-Identifier: GPL-2.0-or-later
"""Block devices for dumps without a filesystem: only what nobody else uses."""

from __future__ import annotations

import os
from pathlib import Path

from kdumpd.config.targets import RAW_MAGIC
from kdumpd.errors import TargetError, UnsupportedError
from kdumpd.host import blockdev

_SLOT_BYTES = 64 << 10  # the second copy of the magic lies there (docs/FORMATS.md)


def require_unused(block: str, mounted: frozenset[str], root: Path = Path("/")) -> None:
    """Raises TargetError unless dumps may be written over the block device `block`; `mounted` are devices of mounts."""
    where = f"the raw target /dev/{block}"
    folder = root / "sys/class/block" / block
    if block in mounted:
        raise TargetError(f"{where} is mounted", hint="name the filesystem in /etc/kdump.conf, or another device")
    if folder.is_dir() and any((part / "partition").exists() for part in folder.iterdir() if part.is_dir()):
        raise TargetError(f"{where} has partitions", hint="name one of them in /etc/kdump.conf")
    holders = sorted(os.listdir(folder / "holders")) if (folder / "holders").is_dir() else []
    if holders:
        raise TargetError(f"{where} is a part of {', '.join(holders)}", hint="name another device in /etc/kdump.conf")
    if is_ours(block, root):
        return
    for tag, what in (
        ("TYPE", "holds"),
        ("PTTYPE", "has a partition table:"),
        ("UUID", "holds a filesystem with UUID"),
    ):
        value = blockdev.tag_of(block, tag, root)
        if value is not None:
            raise TargetError(
                f"{where} {what} {value}, which a dump would destroy",
                hint=f"if nothing on it is needed any more: wipefs --all /dev/{block}",
            )


def is_ours(block: str, root: Path = Path("/")) -> bool:
    """True when a dump was once written to the device, and nothing else since."""
    try:
        with (root / "dev" / block).open("rb") as device:
            first = device.read(len(RAW_MAGIC))
            device.seek(_SLOT_BYTES)
            return RAW_MAGIC in (first, device.read(len(RAW_MAGIC)))
    except OSError:
        return False


def require_whole(block: str, whole: bool) -> None:
    """Raises UnsupportedError for a partition of an array, whose members a dump could be taken for."""
    if not whole:
        raise UnsupportedError(
            f"the raw target /dev/{block} is a partition of an array, which the capture kernel cannot tell from others",
            hint="name the whole array, or a logical volume, in /etc/kdump.conf",
        )
