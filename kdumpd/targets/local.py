# SPDX-License-Identifier: GPL-2.0-or-later
"""A filesystem on a block device of this machine: wait for the device, mount, make a folder, unmount.

Mounting and looking for a label are left to busybox, whose tools are in the image anyway.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from kdumpd.config.capture import LocalDestination
from kdumpd.errors import TargetError, os_reason
from kdumpd.targets.files import CrashDirectory
from kdumpd.targets.layers import bring_up
from kdumpd.targets.target import Store, Target

DEVICE_DEADLINE_SEC = 30.0
_TOOL_DEADLINE_SEC = 120.0
_POLL_SEC = 0.1


class LocalDisk(Target):
    """A destination on a disk; `device_deadline_sec` is how long the device may take to appear."""

    def __init__(
        self, destination: LocalDestination, mountpoint: Path, device_deadline_sec: float = DEVICE_DEADLINE_SEC
    ) -> None:
        self.name = str(destination)
        self._destination = destination
        self._mountpoint = mountpoint
        self._device_deadline_sec = device_deadline_sec

    @contextlib.contextmanager
    def open_crash(self, name: str, alive: Callable[[], None]) -> Iterator[Store]:
        """As Target.open_crash: the filesystem stays mounted until the end of the block."""
        wanted = self._destination
        with (
            mounted(self._device(alive), wanted.fstype, self._mountpoint, wanted.options) as root,
            CrashDirectory.create(root, wanted.directory, name) as directory,
        ):
            yield directory

    def _device(self, alive: Callable[[], None]) -> str:
        """What is to be mounted, once it is there."""
        wanted = self._destination
        if wanted.fstype == "virtiofs":
            return wanted.device
        made = bring_up(wanted.layers, self._device_deadline_sec, alive)
        if made is not None and not wanted.device.startswith("/dev/"):
            # Not looked for by its tag: a member of a mirror, or a snapshot, may have the same.
            return str(made)
        return str(wait_for_device(wanted.device, self._device_deadline_sec, alive))


def run_tool(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    """Runs one tool. Raises TargetError when it cannot start or does not end."""
    try:
        return subprocess.run(
            arguments, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_TOOL_DEADLINE_SEC, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise TargetError(f"{arguments[0]} did not end within {_TOOL_DEADLINE_SEC:.0f} s") from error
    except OSError as error:
        raise TargetError(f"{arguments[0]} cannot be run: {os_reason(error)}") from error


def find_device(device: str) -> Path | None:
    """The device node of /dev/..., LABEL=... or UUID=..., or None as long as there is none."""
    if device.startswith("/dev/"):
        path = Path(device)
        return path if path.is_block_device() else None
    done = run_tool(["findfs", device])
    path = Path(done.stdout.strip())
    return path if done.returncode == 0 and path.is_block_device() else None


def wait_for_device(device: str, deadline_sec: float, alive: Callable[[], None]) -> Path:
    """The device node, as soon as there is one. Calls `alive` while waiting. Raises TargetError at the deadline."""
    end = time.monotonic() + deadline_sec
    while True:
        path = find_device(device)
        if path is not None:
            return path
        if time.monotonic() >= end:
            raise TargetError(
                f"the device {device} did not appear within {deadline_sec:.0f} s",
                hint="is its driver in the image? On the running system: kdumpctl rebuild",
            )
        alive()
        time.sleep(_POLL_SEC)


@contextlib.contextmanager
def mounted(device: str, fstype: str, where: Path, options: str = "") -> Iterator[Path]:
    """The filesystem of `device`, mounted on `where` for writing with further `options`. Raises TargetError.

    On the way out all of it is synced and unmounted, and an error of either is raised: until then nothing that was
    written counts.
    """
    where.mkdir(mode=0o700, parents=True, exist_ok=True)
    words = ",".join(filter(None, ("rw,nosuid,nodev,noexec,noatime", options)))
    done = run_tool(["mount", "-t", fstype, "-o", words, device, str(where)])
    if done.returncode != 0:
        reason = done.stderr.strip().splitlines()[-1:] or [f"mount failed with {done.returncode}"]
        raise TargetError(f"{device} cannot be mounted as {fstype}: {reason[0]}")
    try:
        yield where
    except BaseException:
        # The first error is the one to tell; still leave as clean a filesystem as possible.
        with contextlib.suppress(TargetError):
            _unmount(where)
        raise
    _unmount(where)


def _unmount(where: Path) -> None:
    os.sync()
    done = run_tool(["umount", str(where)])
    if done.returncode != 0:
        reason = done.stderr.strip().splitlines()[-1:] or [f"umount failed with {done.returncode}"]
        raise TargetError(f"{where} cannot be unmounted: {reason[0]}")
