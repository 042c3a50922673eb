# SPDX-License-Identifier: GPL-2.0-or-later
"""The scratch disk of a rehearsal: what the capture kernel takes for its target, and what had to be exchanged for that.

The rule is to exchange as little as can be: a filesystem with the UUID or LABEL that the image's settings name, of the
same kind, on a disk that the image has a driver for. Where that does not go, the settings are replaced, and said to be.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import uuid
from collections.abc import Iterable
from pathlib import Path

from kdumpd.config.capture import CaptureConfig, LocalDestination
from kdumpd.errors import KdumpError, UnsupportedError
from kdumpd.image import kmodules
from kdumpd.image.kmodules import ModuleIndex

_TAGS = ("UUID", "LABEL")
_EXT = ("ext2", "ext3", "ext4")
# The program that makes a filesystem with its options, those for UUID and LABEL, and the package that has it.
_MAKERS = {
    **{name: ("mke2fs -q -F -t " + name, "-U {}", "-L {}", "e2fsprogs") for name in _EXT},
    "xfs": ("mkfs.xfs -q", "-m uuid={}", "-L {}", "xfsprogs"),
    "btrfs": ("mkfs.btrfs -q", "-U {}", "-L {}", "btrfs-progs"),
}
# The folders that a service manager leaves out of PATH now and then.
_FOLDERS = "/usr/sbin:/usr/bin:/sbin:/bin"
_SECONDS = 120


@dataclasses.dataclass(frozen=True, slots=True)
class Bus:
    """How a disk hangs in the scratch machine: words for QEMU, the drive's name in {0}, and the modules for it."""

    name: str
    controller: tuple[str, ...]
    device: str
    modules: tuple[str, ...]


BUSES = (
    Bus("virtio", (), "virtio-blk-pci,drive={0},serial={0}", ("virtio_pci", "virtio_blk")),
    Bus("NVMe", (), "nvme,drive={0},serial={0}", ("nvme",)),
    Bus("virtio SCSI", ("virtio-scsi-pci",), "scsi-hd,drive={0},serial={0}", ("virtio_pci", "virtio_scsi", "sd_mod")),
    Bus("SATA", ("ahci,id=sata",), "ide-hd,drive={0},serial={0}", ("ahci", "sd_mod")),
)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """What the capture finds in the scratch machine.

    `capture` are settings to put in the place of the image's, None where its own hold. `modules` are paths in the
    kernel's folder, in their order, for disk and filesystem; `added` those of them that the image has not.
    `exchanged` are half sentences on what is not as in the machine.
    """

    bus: Bus
    target: LocalDestination
    capture: CaptureConfig | None
    modules: tuple[str, ...]
    added: tuple[str, ...]
    exchanged: tuple[str, ...]


def set_stage(
    capture: CaptureConfig, image_modules: Iterable[str], index: ModuleIndex, config: dict[str, str] | None
) -> Stage:
    """The stage for an image with these settings and modules (places in it).

    Raises UnsupportedError or BuildError when the kernel cannot have a scratch disk.
    """
    has = {kmodules.module_name(path) for path in image_modules}
    bus = _bus(index, has)
    exchanged = [f"the disk, one of QEMU on {bus.name}"]
    target, why = _target(capture)
    told = None
    if why:
        told = dataclasses.replace(capture, destinations=(target,), network=None)
        exchanged.append(f"the target {capture.destinations[0]}, a scratch {target.fstype} filesystem here, as {why}")
    elif len(capture.destinations) > 1:
        exchanged.append(f"all targets but the first, {capture.destinations[0]}")
    names = kmodules.needed_modules(index, None, target.fstype, config)
    modules = tuple(dict.fromkeys((*kmodules.order(index, bus.modules), *names)))
    added = tuple(path for path in modules if kmodules.module_name(path) not in has)
    if added:
        exchanged.append(f"modules that the image has no use for: {' '.join(map(kmodules.module_name, added))}")
    return Stage(bus=bus, target=target, capture=told, modules=modules, added=added, exchanged=tuple(exchanged))


def _bus(index: ModuleIndex, has: set[str]) -> Bus:
    """A bus that the image has all drivers for; else the first one that the kernel has them for."""
    for known in (has | index.builtin, {*index.depends, *index.builtin}):
        for bus in BUSES:
            if known.issuperset(bus.modules):
                return bus
    raise UnsupportedError(
        "This kernel has no driver for any disk of a scratch machine (virtio, NVMe or SATA)",
        hint="install the package with this kernel's further modules",
    )


def _target(capture: CaptureConfig) -> tuple[LocalDestination, str]:
    """What the scratch disk is to be, and why it is not what the settings name; an empty text where it is."""
    wanted = capture.destinations[0]
    if not isinstance(wanted, LocalDestination):
        why = "it is no filesystem on a disk"
    elif wanted.layers:
        why = "it lies on LVM, md or an encrypted volume"
    elif not wanted.device.startswith(tuple(f"{tag}=" for tag in _TAGS)):
        why = "it is named by its path"
    elif wanted.fstype not in _MAKERS or _program(wanted.fstype) is None:
        why = f"{wanted.fstype} cannot be made here"
    elif wanted.fstype == "btrfs" and wanted.options:
        why = "it is a subvolume"
    else:
        return wanted, ""
    return LocalDestination(device=f"UUID={uuid.uuid4()}", fstype="ext4", directory="/crash"), why


def make_disk(path: Path, size_bytes: int, target: LocalDestination) -> None:
    """Makes `path` (sparse, 0600) a disk with the filesystem of `target`. Raises KdumpError, OSError."""
    make_file(path, size_bytes)
    command, uuid_option, label_option, package = _MAKERS[target.fstype]
    program, *options = command.split()
    found = _program(target.fstype)
    if found is None:
        raise KdumpError(f"The scratch disk needs {program}, which is not installed", hint=f"install {package}")
    tag, _, value = target.device.partition("=")
    words = [word.format(value) for word in (label_option if tag == "LABEL" else uuid_option).split()]
    done = subprocess.run(
        [found, *options, *words, str(path)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_SECONDS,
        env={"PATH": _FOLDERS, "LC_ALL": "C.UTF-8"},
    )
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"status {done.returncode}"]
        raise KdumpError(f"The scratch disk cannot be made: {program}: {lines[-1]}", hint="df -h /var/tmp")


def make_file(path: Path, size_bytes: int) -> None:
    """A sparse file, 0600. Raises OSError."""
    with open(path, "xb", opener=_private) as file:
        file.truncate(size_bytes)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)


def _program(fstype: str) -> str | None:
    return shutil.which(_MAKERS[fstype][0].split()[0], path=_FOLDERS)
