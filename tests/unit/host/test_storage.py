# SPDX-License-Identifier: GPL-2.0-or-later
"""Stacks of block devices, taken apart on fixture machines."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from kdumpd.config.capture import Layer, LayerKind, LocalDestination
from kdumpd.config.model import Config
from kdumpd.errors import KdumpError, TargetError, TargetLockedError, UnsupportedError
from kdumpd.host.mounts import resolve_targets
from kdumpd.host.storage import Stack, read_stack

if TYPE_CHECKING:
    from conftest import Machine

GROUP = "AbCdEf0123456789AbCdEf0123456789"
VOLUME = "0123456789AbCdEf0123456789AbCdEf"
LVM = f"LVM-{GROUP}{VOLUME}"
ARRAY = "0a1b2c3d:00112233:44556677:8899aabb"
RAID1 = {"md/level": "raid1", "md/metadata_version": "1.2"}


def slaves(machine: Machine, block: str, *names: str) -> None:
    """Says what `block` is made of."""
    folder = machine.root / f"sys/devices/virtual/block/{block}/slaves"
    folder.mkdir()
    for name in names:
        (folder / name).symlink_to((machine.root / "sys/class/block" / name).resolve())


@pytest.fixture(autouse=True)
def _disks(machine: Machine) -> None:
    machine.disk("sda", "8:0", parts={"sda1": "8:1"})
    machine.disk("sdb", "8:16", parts={"sdb1": "8:17"})


def mirror(machine: Machine) -> Layer:
    """md0 of both disks."""
    machine.virtual("md0", "9:0", RAID1)
    slaves(machine, "md0", "sdb1", "sda1")
    machine.tag_by_id(f"md-uuid-{ARRAY}", "md0")
    return Layer(kind=LayerKind.MD, ident=ARRAY, device="/dev/md0")


def test_a_partition_is_a_stack_of_itself(machine: Machine) -> None:
    assert read_stack("sda1", machine.root) == Stack(disks=("sda1",))


def test_a_volume_is_known_by_the_ids_on_its_disks(machine: Machine) -> None:
    machine.virtual("dm-3", "253:3", {"dm/uuid": LVM, "dm/name": "vg-dumps"})
    slaves(machine, "dm-3", "sda1", "sdb")
    wanted = Layer(kind=LayerKind.LVM, ident=LVM)
    assert read_stack("dm-3", machine.root) == Stack(disks=("sda1", "sdb"), layers=(wanted,), modules=("dm_mod",))


def test_what_lies_below_comes_first(machine: Machine) -> None:
    array = mirror(machine)
    machine.virtual("dm-0", "253:0", {"dm/uuid": LVM})
    slaves(machine, "dm-0", "md0")
    stack = read_stack("dm-0", machine.root)
    assert stack.layers == (array, Layer(kind=LayerKind.LVM, ident=LVM))
    assert (stack.disks, stack.modules) == (("sda1", "sdb1"), ("raid1", "dm_mod"))


def test_a_partition_of_an_array_is_named_by_its_path(machine: Machine) -> None:
    array = mirror(machine)
    folder = machine.root / "sys/devices/virtual/block/md0/md0p1"
    folder.mkdir()
    (folder / "partition").write_text("1\n")
    for link in ("sys/class/block/md0p1", "sys/dev/block/259:0"):
        (machine.root / link).symlink_to(folder)
    machine.tag("uuid", "1111-aaaa", "md0p1")
    machine.mounts("27 1 259:0 / / rw - ext4 /dev/md0p1 rw\n")
    (target,) = resolve_targets(Config(), machine.root)
    assert isinstance(target.destination, LocalDestination)
    assert (target.destination.device, target.destination.layers) == ("/dev/md0p1", (array,))


def test_the_default_target_may_be_a_volume(machine: Machine) -> None:
    machine.virtual("dm-0", "253:0", {"dm/uuid": LVM})
    slaves(machine, "dm-0", "sda1")
    machine.tag("uuid", "1111-aaaa", "dm-0")
    machine.mounts("27 1 253:0 / / rw - ext4 /dev/mapper/vg-root rw\n")
    (target,) = resolve_targets(Config(), machine.root)
    assert isinstance(target.destination, LocalDestination)
    assert target.destination.device == "UUID=1111-aaaa"
    assert target.destination.layers == (Layer(kind=LayerKind.LVM, ident=LVM),)


@pytest.mark.parametrize(
    ("uuid", "error", "words"),
    [
        ("CRYPT-LUKS2-x", TargetLockedError, "an encrypted volume without a LUKS header"),
        ("mpath-36001", UnsupportedError, "a multipath device"),
        (f"{LVM}-tpool", UnsupportedError, "an LVM volume"),
        ("other", UnsupportedError, "a device-mapper device"),
        (LVM, UnsupportedError, "does not say what dm-0"),
    ],
)
def test_what_cannot_be_brought_up_is_told(machine: Machine, uuid: str, error: type[KdumpError], words: str) -> None:
    machine.virtual("dm-0", "253:0", {"dm/uuid": uuid})
    with pytest.raises(error, match=words) as caught:
        read_stack("dm-0", machine.root)
    assert "/dev/dm-0" in caught.value.sentence or "dm-0" in caught.value.sentence


def test_an_encrypted_disk_under_a_volume_is_told(machine: Machine) -> None:
    machine.virtual("dm-0", "253:0", {"dm/uuid": "CRYPT-LUKS2-x"})
    slaves(machine, "dm-0", "sda1")
    machine.virtual("dm-1", "253:1", {"dm/uuid": LVM})
    slaves(machine, "dm-1", "dm-0")
    with pytest.raises(TargetLockedError, match="the target /dev/dm-1 lies on /dev/dm-0, an encrypted volume"):
        read_stack("dm-1", machine.root)


def test_a_thin_volume_is_told(machine: Machine) -> None:
    machine.virtual("dm-0", "253:0", {"dm/uuid": f"{LVM}-tpool"})
    machine.virtual("dm-1", "253:1", {"dm/uuid": LVM})
    slaves(machine, "dm-1", "dm-0")
    with pytest.raises(UnsupportedError, match="made of other volumes"):
        read_stack("dm-1", machine.root)


@pytest.mark.parametrize(
    ("level", "metadata", "error", "words"),
    [
        ("faulty", "none", UnsupportedError, "unknown kind"),
        ("raid5", "external:/md127/0", UnsupportedError, "mdmon"),
        ("raid1", "1.2", TargetError, "whose UUID nobody tells"),
    ],
)
def test_an_array_that_cannot_be_brought_up_is_told(
    machine: Machine, level: str, metadata: str, error: type[KdumpError], words: str
) -> None:
    machine.virtual("md0", "9:0", {"md/level": level, "md/metadata_version": metadata})
    slaves(machine, "md0", "sda1")
    with pytest.raises(error, match=words):
        read_stack("md0", machine.root)


def test_memory_and_loop_disks_are_refused(machine: Machine) -> None:
    machine.virtual("zram0", "254:0", {})
    machine.virtual("loop0", "7:0", {})
    for name, words in (("zram0", "a virtual block device"), ("loop0", "a loop device")):
        with pytest.raises(UnsupportedError, match=words):
            read_stack(name, machine.root)
