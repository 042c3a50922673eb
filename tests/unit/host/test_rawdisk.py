# SPDX-License-Identifier: GPL-2.0-or-later
"""Raw targets on fixture machines: only what nobody else uses, known again by what the disk says of itself."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kdumpd.config.capture import Layer, LayerKind, RawDestination
from kdumpd.config.disk_identity import DiskIdentity, read_identity
from kdumpd.config.model import Config
from kdumpd.config.targets import RAW_MAGIC, RawTarget
from kdumpd.errors import TargetError, UnsupportedError
from kdumpd.host.mounts import resolve_targets

if TYPE_CHECKING:
    from conftest import Machine

LVM = f"LVM-{'a' * 32}{'b' * 32}"


def resolved(machine: Machine, device: str) -> RawDestination:
    """What the capture kernel is told of the raw target `device`."""
    (target,) = resolve_targets(Config(targets=(RawTarget(device=device),)), machine.root)
    assert isinstance(target.destination, RawDestination)
    return target.destination


@pytest.fixture
def disk(machine: Machine) -> Path:
    """A disk without partitions, vdb."""
    folder = machine.disk("vdb", "254:16")
    (folder / "size").write_text("204800\n")
    (folder / "serial").write_text("crashes-1")
    machine.mounts("27 1 8:1 / / rw - ext4 /dev/sda1 rw\n")
    return folder


def test_a_disk_is_known_by_its_serial_number_and_size(machine: Machine, disk: Path) -> None:
    wanted = DiskIdentity(name="crashes-1", partition=0, sectors=204800)
    assert resolved(machine, "/dev/vdb") == RawDestination(device="/dev/vdb", identity=wanted)
    (disk / "wwid").write_text("eui.00253\n")
    identity = read_identity("vdb", machine.root)
    assert identity is not None
    assert identity.name == "eui.00253"
    assert read_identity("vdz", machine.root) is None


def test_a_path_to_an_nvme_disk_is_no_disk(machine: Machine) -> None:
    """With CONFIG_NVME_MULTIPATH, which Debian has, each NVMe disk is there twice."""
    for name, number, hidden in (("nvme2n1", "259:1", "0"), ("nvme2c2n1", "259:2", "1")):
        folder = machine.disk(name, number)
        (folder / "wwid").write_text("nvme.1b36-6c616232\n")
        (folder / "size").write_text("524288\n")
        (folder / "hidden").write_text(f"{hidden}\n")
    assert read_identity("nvme2c2n1", machine.root) is None
    assert read_identity("nvme2n1", machine.root) == DiskIdentity(
        name="nvme.1b36-6c616232", partition=0, sectors=524288
    )


def test_a_partition_is_known_by_its_number_on_the_disk(machine: Machine) -> None:
    folder = machine.disk("sda", "8:0", parts={"sda1": "8:1", "sda2": "8:2"})
    (folder / "device").mkdir()
    (folder / "device/wwid").write_text("naa.5000\n")
    (folder / "sda2/partition").write_text("2\n")
    (folder / "sda2/size").write_text("1000\n")
    machine.mounts("27 1 8:1 / / rw - ext4 /dev/sda1 rw\n")
    assert resolved(machine, "/dev/sda2").identity == DiskIdentity(name="naa.5000", partition=2, sectors=1000)


def test_a_volume_is_known_by_its_layers(machine: Machine, disk: Path) -> None:
    machine.virtual("dm-0", "253:0", {"dm/uuid": LVM, "slaves/vdb/dev": "254:16"})
    found = resolved(machine, "/dev/dm-0")
    assert found == RawDestination(device="/dev/dm-0", layers=(Layer(kind=LayerKind.LVM, ident=LVM),))


def test_what_is_in_use_is_refused(machine: Machine, disk: Path) -> None:
    machine.mounts("27 1 254:16 / / rw - ext4 /dev/vdb rw\n")
    with pytest.raises(TargetError, match="/dev/vdb is mounted"):
        resolved(machine, "/dev/vdb")
    machine.mounts("")
    (disk / "holders/md0").mkdir(parents=True)
    with pytest.raises(TargetError, match="is a part of md0"):
        resolved(machine, "/dev/vdb")


def test_a_disk_with_partitions_is_refused(machine: Machine) -> None:
    machine.disk("sda", "8:0", parts={"sda1": "8:1"})
    with pytest.raises(TargetError, match="has partitions"):
        resolved(machine, "/dev/sda")


def test_a_filesystem_is_refused_unless_the_device_is_ours(machine: Machine, disk: Path) -> None:
    """Dumps may look like anything: what udev made of one is no reason."""
    machine.tag("uuid", "1111-aaaa", "vdb")
    with pytest.raises(TargetError, match=r"holds a filesystem with UUID 1111-aaaa") as caught:
        resolved(machine, "/dev/vdb")
    assert caught.value.hint is not None
    assert "wipefs" in caught.value.hint
    for at in (0, 65536):
        (machine.root / "dev/vdb").write_bytes(bytes(at) + RAW_MAGIC + bytes(100))
        assert resolved(machine, "/dev/vdb").device == "/dev/vdb"


def test_a_partition_of_an_array_is_refused(machine: Machine, disk: Path) -> None:
    machine.virtual("md0", "9:0", {"md/level": "raid1", "md/metadata_version": "1.2", "slaves/vdb/dev": "254:16"})
    machine.tag_by_id("md-uuid-0a1b2c3d:00112233:44556677:8899aabb", "md0")
    folder = machine.root / "sys/devices/virtual/block/md0/md0p1"
    folder.mkdir()
    (folder / "partition").write_text("1\n")
    (machine.root / "sys/class/block/md0p1").symlink_to(folder)
    (machine.root / "dev/md0p1").touch()
    with pytest.raises(UnsupportedError, match="a partition of an array"):
        resolved(machine, "/dev/md0p1")
