# SPDX-License-Identifier: GPL-2.0-or-later
"""The settings of a capture that asks for nothing in particular."""

from __future__ import annotations

from kdumpd.config.capture import CaptureConfig, Destination, LocalDestination
from kdumpd.config.model import DEFAULT_DUMP, Action

DISK = LocalDestination(device="UUID=0", fstype="ext4", directory="/crash")


def settings(*destinations: Destination, kernel: str = "6.1.0", encrypt_to: tuple[str, ...] = ()) -> CaptureConfig:
    """To these targets, in their order; to a disk without any."""
    return CaptureConfig(
        hostname="host",
        kernel=kernel,
        destinations=destinations or (DISK,),
        dump=DEFAULT_DUMP,
        final_action=Action.REBOOT,
        failure_action=Action.REBOOT,
        encrypt_to=encrypt_to,
    )
