# SPDX-License-Identifier: GPL-2.0-or-later
"""Which filesystem the dumps go to, named so that the capture kernel finds it again.

Knows /proc/self/mountinfo and the block devices behind it. Refuses to guess: a target that the capture
kernel could not mount by itself is an error here, on the running machine, where somebody can still read it. What a
device is made of is the business of `storage`, drivers are that of `blockdev`.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import re
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from kdumpd.config.capture import (
    SSH_KEY,
    Destination,
    LayerKind,
    LocalDestination,
    NfsDestination,
    RawDestination,
    SshDestination,
)
from kdumpd.config.disk_identity import read_identity
from kdumpd.config.model import Action, Config
from kdumpd.config.targets import LocalTarget, NfsTarget, RawTarget, SshTarget, Target
from kdumpd.errors import KdumpError, TargetError, UnsupportedError
from kdumpd.host import blockdev, rawdisk, storage
from kdumpd.host.storage import Stack

_OCTAL = re.compile(r"\\([0-7]{3})")
_NETWORK = frozenset({"nfs", "nfs4", "cifs", "smb3", "ceph", "9p", "fuse.sshfs", "fuse.glusterfs", "afs"})
# One driver mounts them all.
_EXT_FAMILY = frozenset({"ext2", "ext3", "ext4"})


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Mount:
    """One line of mountinfo; `root` is the folder of the filesystem that is seen at `mountpoint`."""

    device_number: str  # "major:minor"
    root: str
    mountpoint: str
    fstype: str
    source: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedTarget:
    """Where dumps go: `destination` in the capture kernel's words, and what it rests on here.

    A local destination's device is `UUID=...` where the filesystem has one, else `LABEL=...` or a path below /dev.
    `block` is the kernel's name of the block device (a name in /sys/class/block) on the running machine, `stack` what
    that is made of; None for what is not on a block device. `shared` is the virtio device of a virtiofs share.
    """

    destination: Destination
    block: str | None
    stack: Stack | None = None
    shared: bool = False

    @property
    def fstype(self) -> str | None:
        """The filesystem that the capture kernel has to know."""
        return self.destination.fstype if isinstance(self.destination, LocalDestination) else None


def parse_mountinfo(text: str) -> tuple[Mount, ...]:
    """The mounts of a mountinfo file, in its order (proc(5)); lines of another shape are left out."""
    mounts = []
    for line in text.splitlines():
        left, separator, right = line.partition(" - ")
        fields, tail = left.split(" "), right.split(" ")
        if not separator or len(fields) < 6 or len(tail) < 2:
            continue
        mounts.append(
            Mount(
                device_number=fields[2],
                root=_unescape(fields[3]),
                mountpoint=_unescape(fields[4]),
                fstype=tail[0],
                source=_unescape(tail[1]),
            )
        )
    return tuple(mounts)


def read_mounts(root: Path = Path("/")) -> tuple[Mount, ...]:
    """The mounts this process sees. Raises TargetError when mountinfo cannot be read."""
    try:
        return parse_mountinfo((root / "proc/self/mountinfo").read_text(errors="surrogateescape"))
    except OSError as error:
        raise TargetError(f"the mounted filesystems cannot be listed: {error}", hint="mount /proc") from error


def mount_of(mounts: tuple[Mount, ...], path: str) -> Mount | None:
    """The mount that holds `path` (absolute, without symbolic links): the deepest one, the last if several."""
    best = None
    wanted = PurePosixPath(path)
    for mount in mounts:
        point = PurePosixPath(mount.mountpoint)
        if wanted.is_relative_to(point) and (best is None or len(point.parts) >= len(best[0].parts)):
            best = (point, mount)
    return None if best is None else best[1]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Resolution:
    """All targets of kdump.conf, looked at: those that can be used, in their order, and why the others cannot."""

    targets: tuple[ResolvedTarget, ...]
    troubles: tuple[KdumpError, ...] = ()


def resolve_targets(config: Config, root: Path = Path("/")) -> tuple[ResolvedTarget, ...]:
    """Turns kdump.conf's targets into what the capture kernel is told: resolve_all without the reasons."""
    return resolve_all(config, root).targets


def resolve_all(config: Config, root: Path = Path("/")) -> Resolution:
    """Looks at each target of kdump.conf, or at the filesystem that holds `path` if it names none.

    Raises the error of the first one when none can be used: TargetError when there is no such device, or no block
    device behind the path; UnsupportedError when the capture kernel could not bring it up.
    """
    wanted: list[Callable[[], ResolvedTarget]] = [
        functools.partial(_explicit, target, config.path, config.sshkey, root) for target in config.targets
    ]
    if not config.targets:
        wanted.append(functools.partial(_default, config.path, root))
    if config.failure_action is Action.DUMP_TO_ROOTFS:
        wanted.append(functools.partial(_root_filesystem, config.path, root))
    targets: dict[Destination, ResolvedTarget] = {}
    troubles: list[KdumpError] = []
    for resolve in wanted:
        try:
            found = resolve()
            targets.setdefault(found.destination, found)
        except KdumpError as error:
            troubles.append(error)
    if not targets:
        raise troubles[0]
    return Resolution(targets=tuple(targets.values()), troubles=tuple(troubles))


def _root_filesystem(directory: str, root: Path) -> ResolvedTarget:
    """The folder `directory` of the filesystem of /, whatever is mounted on that folder here."""
    found = _default("/", root)
    if not isinstance(found.destination, LocalDestination):
        return found
    inside = PurePosixPath(found.destination.directory) / directory.lstrip("/")
    return dataclasses.replace(found, destination=dataclasses.replace(found.destination, directory=str(inside)))


def _default(wanted: str, root: Path) -> ResolvedTarget:
    """The filesystem that holds the folder `wanted`."""
    path = real_path(wanted, root)
    mount = mount_of(read_mounts(root), path)
    if mount is None:
        raise TargetError(f"no mounted filesystem holds {wanted}", hint="name the target in /etc/kdump.conf")
    block = _block_of(mount, wanted, root)
    stack = storage.read_stack(block, root)
    below = PurePosixPath(path).relative_to(mount.mountpoint)
    destination = LocalDestination(
        device=_destination_device(block, stack, mount.source, root),
        fstype=mount.fstype,
        directory=str(PurePosixPath(mount.root) / below),
        layers=stack.layers,
        options=_options(mount.fstype, block, root, subvolumes=True),
    )
    return ResolvedTarget(destination=destination, block=block, stack=stack)


def _options(fstype: str, block: str, root: Path, *, subvolumes: bool = False) -> str:
    """What mount(8) has to be told. Of btrfs, mountinfo names folders from its uppermost volume (5) on."""
    if fstype == "btrfs":
        if len(_members(block, root)) > 1:
            raise UnsupportedError(
                f"/dev/{block} is a part of a btrfs on several disks, which the capture image cannot bring up",
                hint="name another target in /etc/kdump.conf, for example: ext4 UUID=...",
            )
        return "subvolid=5" if subvolumes else ""
    # FAT has no modes of its own.
    return "umask=0077" if fstype in {"vfat", "msdos", "exfat"} else ""


def _members(block: str, root: Path) -> list[str]:
    """The devices of the mounted btrfs that `block` belongs to (Documentation/ABI/testing/sysfs-fs-btrfs, devices)."""
    for folder in (root / "sys/fs/btrfs").glob("*/devices"):
        names = os.listdir(folder)
        if block in names:
            return names
    return []


def _destination_device(block: str, stack: Stack, fallback: str, root: Path) -> str:
    """As _stable_name. On a partition of an array only the path counts: members of a mirror may look like the whole."""
    return _stable_name(block, fallback, root) if stack.whole else f"/dev/{block}"


def real_path(path: str, root: Path) -> str:
    """`path` with the symbolic links below `root` followed; what does not exist yet is kept as it is."""
    pending, done = list(reversed(PurePosixPath(path).parts[1:])), PurePosixPath("/")
    for _ in range(256):
        if not pending:
            return str(done)
        part = pending.pop()
        if part == "..":
            done = done.parent
            continue
        here = root / str(done / part).lstrip("/")
        if here.is_symlink():
            link = PurePosixPath(os.readlink(here))
            done = PurePosixPath("/") if link.is_absolute() else done
            pending.extend(reversed([piece for piece in link.parts if piece != "/"]))
        else:
            done = done / part
    raise TargetError(f"{path} goes round in circles of symbolic links", hint="change path in /etc/kdump.conf")


def _unescape(field: str) -> str:
    return _OCTAL.sub(lambda match: chr(int(match[1], 8)), field)


def _explicit(target: Target, directory: str, sshkey: str | None, root: Path) -> ResolvedTarget:
    if isinstance(target, RawTarget):
        return _raw(target, root)
    directory = str(PurePosixPath(directory))
    if isinstance(target, NfsTarget):
        return ResolvedTarget(
            destination=NfsDestination(server=target.server, export=target.export, directory=directory), block=None
        )
    if isinstance(target, SshTarget):
        account = SshDestination(
            user=target.user, host=target.host, port=target.port, directory=directory, key=sshkey or SSH_KEY
        )
        return ResolvedTarget(destination=account, block=None)
    if not isinstance(target, LocalTarget):
        raise UnsupportedError(f"dumps cannot be sent to '{target}'", hint="name a filesystem in /etc/kdump.conf")
    if target.fstype == "virtiofs":
        share = LocalDestination(device=target.device, fstype=target.fstype, directory=directory)
        return ResolvedTarget(destination=share, block=None, shared=True)
    block = blockdev.find_block(target.device, root)
    stack = storage.read_stack(block, root)
    found = _fstype_of(block, root)
    if found is not None and found != target.fstype and not {found, target.fstype} <= _EXT_FAMILY:
        raise TargetError(
            f"{target.device} holds {found}, but /etc/kdump.conf says {target.fstype}",
            hint=f"write: {found} {target.device}",
        )
    named = target.device.startswith(("UUID=", "LABEL=")) and stack.whole
    destination = LocalDestination(
        device=target.device if named else _destination_device(block, stack, target.device, root),
        fstype=target.fstype,
        directory=directory,
        layers=stack.layers,
        options=_options(target.fstype, block, root),
    )
    return ResolvedTarget(destination=destination, block=block, stack=stack)


def _raw(target: RawTarget, root: Path) -> ResolvedTarget:
    block = blockdev.find_block(target.device, root)
    stack = storage.read_stack(block, root)
    rawdisk.require_whole(block, stack.whole)
    if any(layer.kind is LayerKind.CRYPT for layer in stack.layers):
        # With another key than the volume has now a filesystem does not mount; here the dump would be noise.
        raise UnsupportedError(
            f"{target.device} lies on an encrypted volume, which takes dumps only in a filesystem",
            hint="make a filesystem there and name it in /etc/kdump.conf, for example: ext4 UUID=...",
        )
    mounts = read_mounts(root) if (root / "proc/self/mountinfo").exists() else ()
    mounted = (blockdev.block_by_number(mount.device_number, root) for mount in mounts)
    rawdisk.require_unused(block, frozenset(name for name in mounted if name is not None), root)
    identity = None if stack.layers else read_identity(block, root)
    destination = RawDestination(device=target.device, layers=stack.layers, identity=identity)
    return ResolvedTarget(destination=destination, block=block, stack=stack)


def _fstype_of(block: str, root: Path) -> str | None:
    """The filesystem on `block`, from where it is mounted or from blkid; None when neither tells."""
    if (root / "proc/self/mountinfo").exists():
        for mount in read_mounts(root):
            if blockdev.block_by_number(mount.device_number, root) == block:
                return mount.fstype
    return blockdev.tag_of(block, "TYPE", root)


def _block_of(mount: Mount, path: str, root: Path) -> str:
    """The block device of a mount. Its number says it, save for filesystems with numbers of their own (btrfs)."""
    block = blockdev.block_by_number(mount.device_number, root)
    if block is None and mount.source.startswith("/dev/"):
        block = blockdev.block_by_path(mount.source, root)
    if block is not None:
        return block
    hint = "name a target on a disk in /etc/kdump.conf, for example: ext4 UUID=..."
    if mount.fstype in _NETWORK:
        raise UnsupportedError(f"{path} lies on {mount.source}, a network filesystem ({mount.fstype})", hint=hint)
    if mount.fstype in {"tmpfs", "ramfs"}:
        raise TargetError(f"{path} lies on a {mount.fstype}, which does not outlive a crash", hint=hint)
    raise TargetError(f"{path} lies on a {mount.fstype} filesystem without a block device", hint=hint)


def _stable_name(block: str, fallback: str, root: Path) -> str:
    """A name that holds when the capture kernel finds the disks in another order."""
    for tag in ("UUID", "LABEL"):
        value = blockdev.tag_of(block, tag, root)
        if value is not None:
            return f"{tag}={value}"
    return fallback if fallback.startswith("/dev/") and fallback != "/dev/root" else f"/dev/{block}"
