# SPDX-License-Identifier: GPL-2.0-or-later
"""Where on the running machine the dumps of the capture kernel are to be seen.

The capture kernel writes below `path` of a filesystem; here that filesystem may be mounted somewhere else, or not at
all. Knows mounts; mounts nothing itself.
"""

from __future__ import annotations

from pathlib import Path

from kdumpd.config.model import Config
from kdumpd.config.targets import LocalTarget, RawTarget
from kdumpd.errors import TargetError
from kdumpd.host import blockdev
from kdumpd.host.mounts import read_mounts


def crash_folder(config: Config, root: Path = Path("/")) -> Path:
    """The folder with one directory for each crash, below `root`.

    Raises TargetError when kdump.conf names a device that is missing or not mounted at this moment.
    """
    if not config.targets or isinstance(config.targets[0], RawTarget):
        # What comes to a raw device is copied to `path`.
        return root / config.path.lstrip("/")
    target = config.targets[0]
    if not isinstance(target, LocalTarget):
        raise TargetError(f"the dumps go to '{target}', which this machine does not see", hint="look for them there")
    block = blockdev.find_block(target.device, root)
    for mount in read_mounts(root):
        number = blockdev.block_by_number(mount.device_number, root)
        if number is None and mount.source.startswith("/dev/"):
            number = blockdev.block_by_path(mount.source, root)
        if number == block and mount.root == "/":
            return root / mount.mountpoint.lstrip("/") / config.path.lstrip("/")
    raise TargetError(
        f"{target.device}, which holds the dumps, is not mounted",
        hint=f"mount it to see them: mount {target.device} /mnt",
    )
