# SPDX-License-Identifier: GPL-2.0-or-later
"""NFS, mounted with bounds: an error comes back when the server does not, instead of a process that nobody can end.

The kernel's own text options are used (nfs(5), fs/nfs/fs_context.c: `addr=`, `vers=`), so that no mount.nfs is needed:
for version 3 the kernel asks the server's mountd itself. Version 4 is tried first.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from kdumpd.config.capture import NfsDestination
from kdumpd.errors import TargetError
from kdumpd.targets.files import CrashDirectory
from kdumpd.targets.target import Store, Target

MOUNT_DEADLINE_SEC = 60.0
# Tenths of a second that an answer may take at first, and how often it is asked for again: about 30 s in all. nolock:
# there is no lockd and no statd in a capture kernel, and nobody else writes these files.
_BOUNDS = "soft,timeo=50,retrans=2,nolock,nosharecache"
_VERSIONS = ("4.2", "4.1", "4.0", "3")
_MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_NOATIME = 0x2, 0x4, 0x8, 0x400
_MNT_DETACH = 0x2


class NfsExport(Target):
    """A folder on an NFS server; the files are made as on a local filesystem, with root's rights as far as the server
    grants them (root_squash makes them another user's)."""

    def __init__(self, destination: NfsDestination, mountpoint: Path, deadline_sec: float = MOUNT_DEADLINE_SEC) -> None:
        self.name = str(destination)
        self._destination = destination
        self._mountpoint = mountpoint
        self._deadline_sec = deadline_sec

    @contextlib.contextmanager
    def open_crash(self, name: str, alive: Callable[[], None]) -> Iterator[Store]:
        """As Target.open_crash: mounted until the end of the block. What the server has to say at fsync and close is
        raised by the files themselves."""
        wanted = self._destination
        with (
            mounted(wanted, self._mountpoint, alive, self._deadline_sec) as root,
            CrashDirectory.create(root, wanted.directory, name) as directory,
        ):
            yield directory


@contextlib.contextmanager
def mounted(destination: NfsDestination, where: Path, alive: Callable[[], None], deadline_sec: float) -> Iterator[Path]:
    """The export, mounted on `where`. Raises TargetError.

    It is detached at the end, whatever the server does: each file was synced and closed before, and that counts.
    """
    where.mkdir(mode=0o700, parents=True, exist_ok=True)
    end = time.monotonic() + deadline_sec
    reasons: dict[str, None] = {}
    for address in destination.addresses or (destination.server,):
        for version in _VERSIONS:
            reason = _bounded(destination, address, version, where, end, alive)
            if reason is None:
                try:
                    yield where
                finally:
                    _detach(where)
                return
            reasons.setdefault(f"version {version}: {reason}")
            if time.monotonic() >= end:
                break
    shown = "; ".join(reasons)
    raise TargetError(
        f"{destination.server}:{destination.export} cannot be mounted: {shown}",
        hint=f"is it exported to this machine? showmount -e {destination.server}",
    )


def _bounded(
    destination: NfsDestination, address: str, version: str, where: Path, end: float, alive: Callable[[], None]
) -> str | None:
    """Mounts in a thread, so that a mount that hangs does not hold up the next target. None, or why not."""
    outcome: list[str | None] = []
    mounting = threading.Thread(
        target=lambda: outcome.append(_mount(destination, address, version, where)), daemon=True
    )
    mounting.start()
    while mounting.is_alive():
        if time.monotonic() >= end:
            return "no answer in time"
        alive()
        mounting.join(0.5)
    return outcome[0]


def _mount(destination: NfsDestination, address: str, version: str, where: Path) -> str | None:
    host = f"[{address}]" if ":" in address else address
    family = "6" if ":" in address else ""
    options = f"{_BOUNDS},vers={version},addr={address},proto=tcp{family}"
    if version == "3":
        options += f",mountaddr={address},mountproto=tcp{family},mountvers=3"
    flags = _MS_NOSUID | _MS_NODEV | _MS_NOEXEC | _MS_NOATIME
    libc = ctypes.CDLL(None, use_errno=True)
    source = f"{host}:{destination.export}".encode()
    if libc.mount(source, os.fsencode(where), b"nfs", ctypes.c_ulong(flags), options.encode()) == 0:
        return None
    return os.strerror(ctypes.get_errno())


def _detach(where: Path) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.umount2(os.fsencode(where), _MNT_DETACH) != 0:
        raise TargetError(f"{where} cannot be unmounted: {os.strerror(ctypes.get_errno())}")
