# SPDX-License-Identifier: GPL-2.0-or-later
"""From a partition to the drivers that carry it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kdumpd.errors import TargetError
from kdumpd.host import blockdev, storage

if TYPE_CHECKING:
    from conftest import Machine

PCI = "pci0000:00/0000:00:1f.2"


def test_the_chain_goes_from_the_disk_up_to_the_bus(tmp_path: Path, machine: Machine) -> None:
    scsi = f"{PCI}/ata1/host0/target0:0:0/0:0:0:0"
    machine.disk("sda", "8:0", parts={"sda1": "8:1"}, below=scsi)
    machine.driver(PCI, "pci", "ahci", module="ahci", modalias="pci:v00008086d00002922")
    machine.driver(scsi, "scsi", "sd", module="sd_mod", modalias="scsi:t-0x00")
    chain = blockdev.read_chain("sda1", tmp_path)
    assert (chain.block, chain.disk) == ("sda1", "sda")
    assert [(device.driver, device.module) for device in chain.devices] == [("sd", "sd_mod"), ("ahci", "ahci")]
    assert [device.modalias for device in chain.devices] == ["scsi:t-0x00", "pci:v00008086d00002922"]


def test_a_driver_built_into_the_kernel_names_no_module(tmp_path: Path, machine: Machine) -> None:
    machine.disk("vda", "254:0", below="pci0000:00/0000:00:02.0/virtio1")
    machine.driver("pci0000:00/0000:00:02.0/virtio1", "virtio", "virtio_blk", module=None, modalias="virtio:d2v1AF4")
    (device,) = blockdev.read_chain("vda", tmp_path).devices
    assert (device.driver, device.module) == ("virtio_blk", None)


def test_a_built_in_driver_with_a_link_to_its_module_names_none(tmp_path: Path, machine: Machine) -> None:
    machine.disk("vda", "254:0", below="pci0000:00/0000:00:02.0/virtio1")
    machine.driver("pci0000:00/0000:00:02.0/virtio1", "virtio", "virtio_blk", module="virtio_blk", modalias="virtio:x")
    (tmp_path / "sys/module/virtio_blk/initstate").unlink()
    (device,) = blockdev.read_chain("vda", tmp_path).devices
    assert (device.driver, device.module) == ("virtio_blk", None)


def test_an_nvme_multipath_disk_leads_to_each_of_its_controllers(tmp_path: Path, machine: Machine) -> None:
    subsystem = "virtual/nvme-subsystem/nvme-subsys0"
    disk = tmp_path / "sys/devices" / subsystem / "nvme0n1"
    disk.mkdir(parents=True)
    (tmp_path / "sys/class/block/nvme0n1").symlink_to(disk)
    for number, name in ((1, "nvme0"), (2, "nvme1")):
        pci = f"pci0000:00/0000:0{number}:00.0"
        controller = tmp_path / "sys/devices" / pci / "nvme" / name
        controller.mkdir(parents=True)
        machine.driver(pci, "pci", "nvme", module="nvme", modalias=f"pci:controller{number}")
        (disk.parent / name).symlink_to(controller)
    assert storage.read_stack("nvme0n1", tmp_path) == storage.Stack(disks=("nvme0n1",))
    chain = blockdev.read_chain("nvme0n1", tmp_path)
    assert [device.modalias for device in chain.devices] == ["pci:controller1", "pci:controller2"]


def test_an_unknown_device_is_named(machine: Machine) -> None:
    with pytest.raises(TargetError, match="no block device sdq"):
        blockdev.read_chain("sdq", machine.root)


def test_udev_escapes_in_labels_are_undone(tmp_path: Path, machine: Machine) -> None:
    machine.disk("sda", "8:0")
    machine.tag("label", r"a\x2fb\x20ü", "sda")
    assert blockdev.find_block("LABEL=a/b ü", tmp_path) == "sda"
    assert blockdev.tag_of("sda", "LABEL", tmp_path) == "a/b ü"
    assert blockdev.tag_of("sda", "UUID", tmp_path) is None


def test_this_machine_has_a_chain_for_each_of_its_disks() -> None:
    for link in Path("/sys/class/block").iterdir():
        chain = blockdev.read_chain(link.name)
        assert chain.block == link.name
        assert link.name.startswith(chain.disk)
