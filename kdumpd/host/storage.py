# SPDX-License-Identifier: GPL-2.0-or-later
"""What a block device is made of: LVM volumes, md arrays and the disks below, as sysfs shows it (slaves).

Only stacks that the capture kernel can put together again count; anything else is an error with the reason, while
somebody can still read it. The order of things and their names may change until a crash, so layers are known by ids
that are written on the disks. LVM's tables are not copied: a volume that was moved or extended after the image was
built lies elsewhere, and writing to where it was would destroy another one. The capture kernel asks lvm(8) and
mdadm(8), as the first kernel did. An encrypted volume counts where the kernel hands its key over (crypt_keys.py).
"""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
from pathlib import Path

from kdumpd.config.capture import Layer, LayerKind
from kdumpd.errors import TargetError, TargetLockedError, UnsupportedError
from kdumpd.host import blockdev, crypt_keys, crypto

_HINT = "name another target in /etc/kdump.conf, for example: ext4 UUID=..."
# 32 characters for the volume group and 32 for the volume; volumes that others are made of have a suffix (lvm2).
_LVM_UUID = re.compile(r"LVM-[A-Za-z0-9]{64}")
_MD_UUID = re.compile(r"[0-9a-f]{8}(:[0-9a-f]{8}){3}")
_MD_LEVELS = {"raid0": "raid0", "raid1": "raid1", "raid10": "raid10", "linear": "linear"} | dict.fromkeys(
    ("raid4", "raid5", "raid6"), "raid456"
)
_MDADM_SECONDS = 20
_DEEPEST = 8


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    """A block device taken apart: `disks` are the disks and partitions at the bottom, by the kernel's names; `layers`
    lie on them in this order, and `modules` are the drivers of these; `ciphers` are modules that are loaded where the
    kernel has them. `whole` is False for a partition of the last one.
    """

    disks: tuple[str, ...]
    layers: tuple[Layer, ...] = ()
    modules: tuple[str, ...] = ()
    ciphers: tuple[str, ...] = ()
    whole: bool = True


def read_stack(block: str, root: Path = Path("/")) -> Stack:
    """Takes the block device `block` apart. Raises UnsupportedError for what the capture kernel cannot bring up,
    TargetLockedError when it is encrypted and the capture kernel would not have the key, TargetError when there is no
    such device.
    """
    disks: dict[str, None] = {}
    layers: dict[Layer, None] = {}
    modules: dict[str, None] = {}
    ciphers: dict[str, None] = {}

    def visit(name: str, depth: int) -> None:
        disk = blockdev.disk_folder(name, root)
        found = _layer(disk, block, root)
        if found is None:
            disks.setdefault(name)
            return
        slaves = sorted(os.listdir(disk / "slaves")) if (disk / "slaves").is_dir() else []
        if not slaves or depth >= _DEEPEST:
            raise UnsupportedError(
                f"the kernel does not say what {disk.name}, below the target, is made of", hint=_HINT
            )
        for slave in slaves:
            visit(slave, depth + 1)
        layer, module = found
        layers.setdefault(layer)
        modules.setdefault(module)
        if layer.kind is LayerKind.CRYPT:
            cipher = crypt_keys.read_volume(layer.ident, slaves[0], root).cipher
            ciphers.update(dict.fromkeys(crypto.modules_of(cipher, root)))

    visit(block, 0)
    top = blockdev.disk_folder(block, root)
    return Stack(
        disks=tuple(disks),
        layers=tuple(layers),
        modules=tuple(modules),
        ciphers=tuple(ciphers),
        whole=not layers or top.name == block,
    )


def _layer(disk: Path, target: str, root: Path) -> tuple[Layer, str] | None:
    """The layer that `disk` (its folder in sysfs) is, and its driver; None for a disk of its own."""
    kind = blockdev.software_kind(disk)
    if kind is None:
        return None
    where = f"the target /dev/{target} " + ("is" if disk.name == target else f"lies on /dev/{disk.name},")
    if disk.name.startswith("dm-"):
        uuid = blockdev.attribute(disk / "dm/uuid") or ""
        if _LVM_UUID.fullmatch(uuid):
            _require_plain_volume(disk, where)
            return Layer(kind=LayerKind.LVM, ident=uuid), "dm_mod"
        if uuid.startswith("CRYPT-"):
            return _encrypted(disk, uuid, where, root), "dm_crypt"
    elif (disk / "md").is_dir():
        return _array(disk, where, root)
    raise UnsupportedError(f"{where} {kind}, which the capture image of this kdumpd cannot bring up", hint=_HINT)


def _require_plain_volume(disk: Path, where: str) -> None:
    """A volume on top of other volumes is thin, cached, mirrored or has a snapshot."""
    for slave in (disk / "slaves").glob("dm-*"):
        if (blockdev.attribute(slave / "dm/uuid") or "").startswith("LVM-"):
            raise UnsupportedError(
                f"{where} an LVM volume made of other volumes (thin, cached, mirrored or with a snapshot),"
                " which the capture image of this kdumpd cannot bring up",
                hint=_HINT,
            )


def _encrypted(disk: Path, mapped: str, where: str, root: Path) -> Layer:
    """A LUKS volume whose header and key the capture kernel would have."""
    uuid = crypt_keys.luks_uuid(mapped)
    if uuid is None:
        raise TargetLockedError(
            f"{where} an encrypted volume without a LUKS header, whose key the capture kernel does not have", hint=_HINT
        )
    crypt_keys.require_key(uuid, where, root)
    slaves = sorted(os.listdir(disk / "slaves")) if (disk / "slaves").is_dir() else []
    if len(slaves) != 1:
        raise UnsupportedError(f"the kernel does not say what {disk.name}, below the target, is made of", hint=_HINT)
    under = blockdev.disk_folder(slaves[0], root)
    below = _layer(under, slaves[0], root)
    if below is not None and under.name != slaves[0]:
        raise UnsupportedError(
            f"{where} an encrypted partition of /dev/{under.name}, which the capture image of this kdumpd cannot find",
            hint=_HINT,
        )
    return Layer(kind=LayerKind.CRYPT, ident=uuid, device="" if below is None else below[0].ident)


def _array(disk: Path, where: str, root: Path) -> tuple[Layer, str]:
    level = blockdev.attribute(disk / "md/level") or ""
    metadata = blockdev.attribute(disk / "md/metadata_version") or ""
    if level not in _MD_LEVELS:
        raise UnsupportedError(f"{where} an md array of an unknown kind ({level or 'none'})", hint=_HINT)
    if metadata.startswith("external"):
        raise UnsupportedError(
            f"{where} an md array that a firmware's RAID describes ({metadata}), which needs mdmon beside it",
            hint=_HINT,
        )
    uuid = _array_uuid(disk.name, root)
    if uuid is None:
        raise TargetError(
            f"{where} an md array whose UUID nobody tells: neither udev nor mdadm",
            hint=f"mdadm --detail /dev/{disk.name}",
        )
    return Layer(kind=LayerKind.MD, ident=uuid, device=f"/dev/{disk.name}"), _MD_LEVELS[level]


def _array_uuid(name: str, root: Path) -> str | None:
    """As udev's rules for md name it, else as mdadm(8) prints it."""
    for link in sorted((root / "dev/disk/by-id").glob("md-uuid-*")):
        uuid = link.name.removeprefix("md-uuid-")
        if os.path.basename(os.readlink(link)) == name and _MD_UUID.fullmatch(uuid):
            return uuid
    if root != Path("/"):
        return None
    try:
        done = subprocess.run(
            ["mdadm", "--detail", "--export", f"/dev/{name}"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_MDADM_SECONDS,
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"},
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    values = (line.removeprefix("MD_UUID=") for line in done.stdout.splitlines() if line.startswith("MD_UUID="))
    return next((value for value in values if _MD_UUID.fullmatch(value)), None)
