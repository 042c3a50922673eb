# SPDX-License-Identifier: GPL-2.0-or-later
"""From a destination to the target that serves it. What one kind needs is imported only for that kind."""

from __future__ import annotations

from pathlib import Path

from kdumpd.config.capture import Destination, LocalDestination
from kdumpd.errors import UnsupportedError
from kdumpd.targets.local import DEVICE_DEADLINE_SEC, LocalDisk
from kdumpd.targets.target import Target


def make_target(
    destination: Destination, mountpoint: Path, *, device_deadline_sec: float = DEVICE_DEADLINE_SEC
) -> Target:
    """The target of `destination`; filesystems are mounted on `mountpoint`. Raises UnsupportedError."""
    if isinstance(destination, LocalDestination):
        return LocalDisk(destination, mountpoint, device_deadline_sec)
    raise UnsupportedError(f"dumps cannot be sent to {destination}", hint="use a filesystem on a disk")
