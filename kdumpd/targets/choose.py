# SPDX-License-Identifier: GPL-2.0-or-later
"""From a destination to the target that serves it. What one kind needs is imported only for that kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from kdumpd.config.capture import Destination, LocalDestination, NfsDestination, RawDestination, SshDestination
from kdumpd.config.network import Network
from kdumpd.errors import UnsupportedError
from kdumpd.targets.local import DEVICE_DEADLINE_SEC, LocalDisk
from kdumpd.targets.target import Target

_AS_THEY_ARE: Mapping[str, str] = {}


def make_target(
    destination: Destination,
    mountpoint: Path,
    *,
    encrypt_to: Sequence[str],
    names: Mapping[str, str] = _AS_THEY_ARE,
    links: Mapping[str, str] = _AS_THEY_ARE,
    device_deadline_sec: float = DEVICE_DEADLINE_SEC,
    network: Network | None = None,
    network_deadline_sec: float = 60.0,
) -> Target:
    """The target of `destination`; filesystems are mounted on `mountpoint`. Whatever is written is encrypted to the
    public keys `encrypt_to`, if there are any: whoever asks for a target has to say so. `names` and `links` are as in
    config.layout. `network` is set up before one on the network is reached. Raises UnsupportedError."""
    target = _plain(destination, mountpoint, device_deadline_sec)
    if network is not None and isinstance(destination, NfsDestination | SshDestination):
        from kdumpd.targets.network import NetworkedTarget

        target = NetworkedTarget(target, network, network_deadline_sec)
    if names:
        from kdumpd.targets.renamed import RenamedTarget

        target = RenamedTarget(target, names, links)
    if encrypt_to:
        from kdumpd.targets.sealed import SealedTarget

        return SealedTarget(target, encrypt_to)
    return target


def _plain(destination: Destination, mountpoint: Path, device_deadline_sec: float) -> Target:
    if isinstance(destination, LocalDestination):
        return LocalDisk(destination, mountpoint, device_deadline_sec)
    if isinstance(destination, NfsDestination):
        from kdumpd.targets.nfs import NfsExport

        return NfsExport(destination, mountpoint)
    if isinstance(destination, SshDestination):
        from kdumpd.targets.ssh import SshServer  # brings paramiko along

        return SshServer(destination)
    if isinstance(destination, RawDestination):
        from kdumpd.targets.raw import RawDisk

        return RawDisk(destination, device_deadline_sec)
    raise UnsupportedError(f"dumps cannot be sent to {destination}", hint="use a filesystem on a disk")
