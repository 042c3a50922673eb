# SPDX-License-Identifier: GPL-2.0-or-later
"""Where on the running machine the dumps of the capture kernel are to be seen.

The capture kernel writes below `path` of a filesystem; here that filesystem may be mounted somewhere else, or not at
all. Knows mounts; mounts nothing itself.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from kdumpd.config.model import Action, Config
from kdumpd.config.targets import LocalTarget, RawTarget, Target
from kdumpd.crashes.index import Crash, Standing, read_crashes
from kdumpd.errors import TargetError
from kdumpd.host import blockdev
from kdumpd.host.mounts import read_mounts

_ORDER = tuple(Standing)
_DUMPED = frozenset({Standing.COMPLETE, Standing.INCOMPLETE})


def crash_folders(config: Config, root: Path = Path("/")) -> tuple[Path, ...]:
    """The folders with one directory for each crash, below `root`: of all targets that are seen at this moment, in
    their order.

    Raises TargetError, the first target's, when none is.
    """
    path = root / config.path.lstrip("/")
    if not config.targets:
        return (path,)
    found: dict[Path, None] = {}
    troubles: list[TargetError] = []
    for target in config.targets:
        try:
            # What comes to a raw device is copied to `path`.
            found.setdefault(path if isinstance(target, RawTarget) else _mounted(target, config.path, root))
        except TargetError as error:
            troubles.append(error)
    if config.failure_action is Action.DUMP_TO_ROOTFS:
        found.setdefault(path)
    if not found:
        raise troubles[0]
    return tuple(found)


def crash_folder(config: Config, root: Path = Path("/")) -> Path:
    """The first of crash_folders."""
    return crash_folders(config, root)[0]


def read_all_crashes(config: Config, root: Path = Path("/")) -> tuple[Crash, ...]:
    """The crashes of all targets that are seen, oldest first. One that left several folders, as its log has its own
    when the first target answered late, is the one that has most. Raises TargetError."""
    found = [crash for folder in crash_folders(config, root) for crash in read_crashes(folder)]
    dumps = sorted((crash for crash in found if crash.standing in _DUMPED), key=_rank, reverse=True)
    dumped = {_run(crash): crash.name for crash in dumps if crash.manifest is not None}  # the best one's name
    groups: dict[str, list[Crash]] = {}
    for crash in found:
        # Where the name was taken by the log, the dump's ends with a number.
        name = crash.name if crash.standing in _DUMPED else dumped.get(_run(crash), crash.name)
        groups.setdefault(name, []).append(crash)
    return tuple(sorted(map(_most, groups.values()), key=lambda crash: (crash.time_usec, crash.name)))


def _run(crash: Crash) -> tuple[str, int] | None:
    """Which run of a collector left it, by machine and microsecond; None where no manifest tells.

    The time of the crash is in seconds, and on a board without a clock the same again and again.
    """
    manifest = crash.manifest
    return None if manifest is None else (manifest.hostname, manifest.started_usec)


def _rank(crash: Crash) -> int:
    return _ORDER.index(crash.standing)


def _most(group: list[Crash]) -> Crash:
    """The one that has most of what captures of one crash left, the first target's among equals."""
    first, *others = sorted(group, key=_rank)
    if not others:
        return first
    also = (crash.path for crash in others if crash.manifest is not None and _run(crash) == _run(first))
    return dataclasses.replace(first, also=tuple(also))


def _mounted(target: Target, path: str, root: Path) -> Path:
    if not isinstance(target, LocalTarget):
        raise TargetError(f"the dumps go to '{target}', which this machine does not see", hint="look for them there")
    block = blockdev.find_block(target.device, root)
    for mount in read_mounts(root):
        number = blockdev.block_by_number(mount.device_number, root)
        if number is None and mount.source.startswith("/dev/"):
            number = blockdev.block_by_path(mount.source, root)
        if number == block and mount.root == "/":
            return root / mount.mountpoint.lstrip("/") / path.lstrip("/")
    raise TargetError(
        f"{target.device}, which holds the dumps, is not mounted",
        hint=f"mount it to see them: mount {target.device} /mnt",
    )
