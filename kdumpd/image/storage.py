# SPDX-License-Identifier: GPL-2.0-or-later
"""What the image needs beside drivers to put the target's block device together: lvm(8) and mdadm(8), with settings.
Encrypted volumes need no tool (targets/dm_crypt.py)."""

from __future__ import annotations

import os
from collections.abc import Iterable

from kdumpd.config.capture import Layer, LayerKind, LocalDestination, RawDestination
from kdumpd.errors import BuildError
from kdumpd.host.mounts import ResolvedTarget
from kdumpd.image import contents
from kdumpd.targets.layers import LVM_SETTINGS, TOOLS

_PACKAGES = {LayerKind.LVM: "lvm2", LayerKind.MD: "mdadm"}
_FOLDERS = ("/usr/sbin", "/sbin", "/usr/bin", "/bin")
# lvm.conf(5), whatever the host's says: there is no udev, no daemon, and nowhere to write.
_LVM_CONF = """\
activation { udev_sync = 0 udev_rules = 0 monitoring = 0 reserved_memory = 0 reserved_stack = 16 }
backup { backup = 0 archive = 0 }
devices {
    obtain_device_list_from_udev = 0 external_device_info_source = "none" use_devicesfile = 0 multipath_wwids_file = ""
}
global { use_lvmpolld = 0 use_lvmlockd = 0 locking_dir = "/run/lock/lvm" }
log { syslog = 0 }
"""


def layers_of(targets: Iterable[ResolvedTarget]) -> tuple[Layer, ...]:
    """All layers of `targets`, each once."""
    found: dict[Layer, None] = {}
    for target in targets:
        if isinstance(target.destination, LocalDestination | RawDestination):
            found |= dict.fromkeys(target.destination.layers)
    return tuple(found)


def add_tools(tree: contents.Tree, targets: Iterable[ResolvedTarget]) -> list[str]:
    """The tools for the layers of `targets`; returns the ELF files added. Raises BuildError when one is missing."""
    elfs = []
    for kind in dict.fromkeys(layer.kind for layer in layers_of(targets) if layer.kind in TOOLS):
        name = os.path.basename(TOOLS[kind])
        source = next((path for folder in _FOLDERS if os.path.exists(path := f"{folder}/{name}")), None)
        if source is None:
            raise BuildError(
                f"{name}, which the capture image needs for the target's disks, is not installed",
                hint=f"install {_PACKAGES[kind]}",
            )
        tree.add_file(TOOLS[kind], source)
        elfs.append(source)
        if kind is LayerKind.LVM:
            tree.add_text(f"{LVM_SETTINGS.lstrip('/')}/lvm.conf", _LVM_CONF)
    return elfs
