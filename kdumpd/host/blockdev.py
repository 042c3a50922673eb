# SPDX-License-Identifier: GPL-2.0-or-later
"""Block devices as sysfs shows them: their names and tags, and the drivers between a filesystem and the bus.

Names here are the kernel's own ("vda1"), as in /sys/class/block. Which module files a kernel needs for a
driver is the business of `kdumpd.image.kmodules`; this file only says which drivers are at work.
"""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
from pathlib import Path

from kdumpd.errors import TargetError

_UDEV_ESCAPE = re.compile(r"\\x([0-9a-fA-F]{2})")
_BLKID_SECONDS = 20


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """One device on the way from a disk up to its bus.

    `driver` is None for a device without one. `module` is None when the driver is built into the running
    kernel (or says nothing about its module).
    """

    path: str
    modalias: str | None
    driver: str | None
    module: str | None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class BlockChain:
    """A block device, the disk it is a part of, and the devices that carry the disk, nearest first."""

    block: str
    disk: str
    devices: tuple[Device, ...]


def read_chain(block: str, root: Path = Path("/")) -> BlockChain:
    """Follows the device links of /sys/class/block/`block` upwards. Raises TargetError if there is none."""
    disk = disk_folder(block, root)
    starts = [disk.parent]
    if disk.parent.name.startswith("nvme-subsys"):
        # Multipath disks hang below a virtual subsystem; its links lead to the controllers.
        starts = [link.resolve() for link in sorted(disk.parent.glob("nvme*")) if link.is_symlink()]
    return BlockChain(block=block, disk=disk.name, devices=_upwards(starts, root))


def chain_of(device: Path, name: str, root: Path = Path("/")) -> BlockChain:
    """As read_chain, for any device: `device` is the link to its folder in sysfs."""
    return BlockChain(block=name, disk=name, devices=_upwards([device.resolve()], root))


def virtiofs_chains(root: Path = Path("/")) -> tuple[BlockChain, ...]:
    """One for each virtiofs device. Which of them has which tag, sysfs says only from v6.9 on, so all of them count."""
    links = sorted((root / "sys/bus/virtio/drivers/virtiofs").glob("virtio*"))
    return tuple(
        BlockChain(block="", disk="", devices=_upwards([link.resolve()], root)) for link in links if link.is_symlink()
    )


def _upwards(starts: list[Path], root: Path) -> tuple[Device, ...]:
    """The devices from each of `starts` up to the top of the tree."""
    top = (root / "sys/devices").resolve()
    devices: dict[str, Device] = {}
    for start in starts:
        folder = start
        while folder != top and top in folder.parents:
            device = _read_device(folder, top)
            if device is not None:
                devices.setdefault(device.path, device)
            folder = folder.parent
    return tuple(devices.values())


def disk_folder(block: str, root: Path = Path("/")) -> Path:
    """The folder in sysfs of the disk that `block` is, or is a partition of. Raises TargetError if there is none."""
    here = _sysfs(block, root)
    return here.parent if (here / "partition").exists() else here


def block_by_number(number: str, root: Path = Path("/")) -> str | None:
    """The name of the block device with "major:minor" `number`, None when there is none."""
    link = root / "sys/dev/block" / number
    return link.resolve().name if link.exists() else None


def block_by_path(path: str, root: Path = Path("/")) -> str | None:
    """The kernel's name for a path below /dev, through the links udev makes."""
    name = (root / path.lstrip("/")).resolve().name
    return name if (root / "sys/class/block" / name).exists() else None


def find_block(device: str, root: Path = Path("/")) -> str:
    """The name of the block device called `UUID=...`, `LABEL=...` or /dev/...; TargetError when it is missing."""
    tag, separator, value = device.partition("=")
    if separator and tag in {"UUID", "LABEL"}:
        block = _block_by_tag(tag, value, root)
        words = f"no filesystem with {device} is attached"
    else:
        block = block_by_path(device, root)
        words = f"there is no block device {device}"
    if block is None:
        raise TargetError(words, hint="`blkid` and `lsblk -f` show what is there; change /etc/kdump.conf")
    return block


def tag_of(block: str, tag: str, root: Path = Path("/")) -> str | None:
    """The UUID, LABEL or TYPE of the filesystem on `block`: udev's links first, else asking blkid(8)."""
    for name, target in _tag_links(tag, root):
        if target == block:
            return name
    if root != Path("/"):
        return None
    return _blkid("-p", "-o", "value", "-s", tag, f"/dev/{block}")


def _block_by_tag(tag: str, value: str, root: Path) -> str | None:
    for name, target in _tag_links(tag, root):
        if name == value or (tag == "UUID" and name.lower() == value.lower()):
            return target
    if root != Path("/"):
        return None
    path = _blkid("-l", "-o", "device", "-c", "/dev/null", "-t", f"{tag}={value}")
    return None if path is None else block_by_path(path, root)


def _tag_links(tag: str, root: Path) -> list[tuple[str, str]]:
    folder = root / "dev/disk" / f"by-{tag.lower()}"
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return []  # no udev, or no filesystem has such a tag
    return [(_udev_name(name), os.path.basename(os.readlink(folder / name))) for name in names]


def _udev_name(name: str) -> str:
    return _UDEV_ESCAPE.sub(lambda match: chr(int(match[1], 16)), name)


def _blkid(*arguments: str) -> str | None:
    """The first line blkid prints. None when it finds nothing (its status 2) or is not installed."""
    try:
        done = subprocess.run(
            ["blkid", *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_BLKID_SECONDS,
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"},
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = done.stdout.splitlines()
    return lines[0].strip() or None if done.returncode == 0 and lines else None


def _sysfs(block: str, root: Path) -> Path:
    link = root / "sys/class/block" / block
    if not link.exists():
        raise TargetError(f"the kernel knows no block device {block}", hint="`lsblk` shows what is there")
    return link.resolve()


def software_kind(disk: Path) -> str | None:
    """What makes `disk` (its folder in sysfs) out of something else, with its article; None for a disk of its own."""
    name = disk.name
    if name.startswith("dm-"):
        uuid = attribute(disk / "dm/uuid") or ""
        kinds = {"LVM-": "an LVM volume", "CRYPT-": "an encrypted volume", "mpath-": "a multipath device"}
        return next((kind for start, kind in kinds.items() if uuid.startswith(start)), "a device-mapper device")
    if (disk / "md").is_dir():
        return "an md (software RAID) array"
    if name.startswith("loop"):
        return "a loop device"
    if "virtual" in disk.parts and not disk.parent.name.startswith("nvme-subsys"):
        return "a virtual block device"
    return None


def _read_device(folder: Path, top: Path) -> Device | None:
    modalias = attribute(folder / "modalias")
    driver = _link_name(folder / "driver")
    if modalias is None and driver is None:
        return None
    module = _link_name(folder / "driver/module")
    # Since v6.11 drivers that are built in have the link too; only a loadable module has a state.
    if module is not None and not (folder / "driver/module/initstate").exists():
        module = None
    return Device(path=str(folder.relative_to(top)), modalias=modalias, driver=driver, module=module)


def attribute(path: Path) -> str | None:
    """The text of an attribute in sysfs; None when it is empty or not there."""
    try:
        return path.read_text().strip() or None
    except OSError:
        return None  # sysfs attributes come and go with the device


def _link_name(path: Path) -> str | None:
    return os.path.basename(os.readlink(path)) if path.is_symlink() else None
