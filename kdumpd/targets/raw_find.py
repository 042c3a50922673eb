# SPDX-License-Identifier: GPL-2.0-or-later
"""The disk of a raw target, found again by its identity in whatever order the disks came up."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from kdumpd.config.capture import RawDestination
from kdumpd.config.disk_identity import read_identity
from kdumpd.errors import TargetError

_POLL_SEC = 0.1


def wait_for_disk(wanted: RawDestination, deadline_sec: float, alive: Callable[[], None]) -> Path:
    """The device node, as soon as there is one. Raises TargetError at the deadline, or when two disks look the same."""
    end = time.monotonic() + deadline_sec
    while True:
        blocks = sorted(path.name for path in Path("/sys/class/block").iterdir())
        found = [block for block in blocks if read_identity(block) == wanted.identity]
        if len(found) > 1:
            raise TargetError(
                f"{wanted.device} cannot be told from other disks: {', '.join(found)} are alike in size and name",
                hint="use a partition of another size for raw dumps",
            )
        if found and (Path("/dev") / found[0]).is_block_device():
            return Path("/dev") / found[0]
        if time.monotonic() >= end:
            raise TargetError(
                f"the device {wanted.device} did not appear within {deadline_sec:.0f} s",
                hint="is its driver in the image? On the running system: kdumpctl rebuild",
            )
        alive()
        time.sleep(_POLL_SEC)
