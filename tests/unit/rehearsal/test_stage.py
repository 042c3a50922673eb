# SPDX-License-Identifier: GPL-2.0-or-later
"""The scratch disk of a rehearsal: as little as can be is exchanged, and what is exchanged is named."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
from pathlib import Path

import pytest
from plain_capture import settings

from kdumpd.config.capture import (
    Destination,
    Layer,
    LayerKind,
    LocalDestination,
    NfsDestination,
    RawDestination,
    SshDestination,
)
from kdumpd.errors import KdumpError, UnsupportedError
from kdumpd.image import cpio
from kdumpd.image.kmodules import ModuleIndex
from kdumpd.rehearsal import scratch
from kdumpd.rehearsal.first_system import Pair, behind_image

UUID = "0f0e0d0c-0b0a-4908-8706-050403020100"
EXT4 = LocalDestination(device=f"UUID={UUID}", fstype="ext4", directory="/crash")
MODULES = ("virtio_pci", "virtio_blk", "nvme", "ahci", "sd_mod", "ext4", "xfs")


@pytest.fixture
def index(tmp_path: Path) -> ModuleIndex:
    for name in MODULES:
        (tmp_path / f"{name}.ko").write_bytes(b"\x7fELF" + name.encode())
    return ModuleIndex(
        folder=tmp_path,
        depends={name: (f"{name}.ko", ()) for name in MODULES},
        builtin=frozenset(),
        aliases=(),
        builtin_aliases=(),
        softdeps={},
    )


def image(*names: str) -> list[str]:
    return [f"/usr/lib/modules/6.1.0/kernel/{name}.ko" for name in names]


def test_a_disk_that_the_image_can_drive_needs_nothing_more(index: ModuleIndex) -> None:
    stage = scratch.set_stage(settings(EXT4), image("nvme", "ext4"), index, None)
    assert (stage.bus.name, stage.target, stage.capture, stage.added) == ("NVMe", EXT4, None, ())
    assert stage.exchanged == ("the disk, one of QEMU on NVMe",)
    assert stage.modules == ("nvme.ko", "ext4.ko")


def test_a_driver_that_the_image_lacks_is_named(index: ModuleIndex) -> None:
    stage = scratch.set_stage(settings(EXT4), image("mpt3sas", "ext4"), index, None)
    assert (stage.bus.name, stage.added) == ("virtio", ("virtio_pci.ko", "virtio_blk.ko"))
    assert stage.exchanged[-1] == "modules that the image has no use for: virtio_pci virtio_blk"


def test_a_kernel_without_any_of_these_disks(index: ModuleIndex) -> None:
    with pytest.raises(UnsupportedError, match="no driver for any disk of a scratch machine"):
        scratch.set_stage(settings(EXT4), (), dataclasses.replace(index, depends={}), None)


@pytest.mark.parametrize(
    ("destination", "why"),
    [
        (SshDestination(user="u", host="h", port=22, directory="/d"), "it is no filesystem on a disk"),
        (NfsDestination(server="s", export="/e", directory="/d"), "it is no filesystem on a disk"),
        (RawDestination(device="/dev/sdb"), "it is no filesystem on a disk"),
        (
            dataclasses.replace(EXT4, layers=(Layer(kind=LayerKind.LVM, ident="x"),)),
            "it lies on LVM, md or an encrypted volume",
        ),
        (dataclasses.replace(EXT4, device="/dev/sda2"), "it is named by its path"),
        (dataclasses.replace(EXT4, fstype="f2fs"), "f2fs cannot be made here"),
        (dataclasses.replace(EXT4, fstype="btrfs", options="subvol=@"), "btrfs cannot be made here|it is a subvolume"),
    ],
)
def test_what_cannot_be_had_is_exchanged_and_said_to_be(destination: Destination, why: str, index: ModuleIndex) -> None:
    stage = scratch.set_stage(settings(destination, EXT4), image("nvme", "ext4"), index, None)
    assert stage.capture is not None
    assert stage.capture.destinations == (stage.target,)
    assert stage.target.fstype == "ext4"
    assert stage.target.device.startswith("UUID=")
    said = stage.exchanged[1]
    assert str(destination) in said
    assert any(said.endswith(f"as {each}") for each in why.split("|"))


def test_targets_behind_the_first_are_named(index: ModuleIndex) -> None:
    second = dataclasses.replace(EXT4, device="LABEL=other")
    stage = scratch.set_stage(settings(EXT4, second), image("nvme", "ext4"), index, None)
    assert stage.capture is None
    assert stage.exchanged[1] == f"all targets but the first, {EXT4}"


def pair() -> Pair:
    return Pair(release="6.1.0", kernel=b"k", initrd=bytes(1000), cmdline="x", modules=tuple(image("nvme", "ext4")))


def entries(archive: bytes) -> dict[str, bytes]:
    return {entry.path: entry.content for entry in cpio.read(archive.lstrip(b"\0")) if entry.is_file}


def test_behind_an_image_that_has_all_it_needs_lies_only_its_own_list(index: ModuleIndex) -> None:
    stage = scratch.set_stage(settings(EXT4), pair().modules, index, None)
    archive = behind_image(pair(), stage, index)
    # The kernel wants the next archive at a multiple of four bytes.
    assert (len(pair().initrd) + archive.index(b"070701")) % 512 == 0
    assert entries(archive) == {"etc/kdumpd/modules": "".join(f"{path}\n" for path in pair().modules).encode()}


def test_exchanged_settings_and_drivers_lie_behind_the_image(index: ModuleIndex) -> None:
    only_ext4 = dataclasses.replace(pair(), modules=tuple(image("ext4")))
    ssh = settings(SshDestination(user="u", host="h", port=22, directory="/d"))
    stage = scratch.set_stage(ssh, only_ext4.modules, index, None)
    found = entries(behind_image(only_ext4, stage, index))
    assert json.loads(found["etc/kdumpd/capture.json"])["destinations"][0]["device"] == stage.target.device
    assert f"local {stage.target.device} ext4 rw /crash\n" in found["etc/kdumpd/supervisor"].decode()
    modules = found["etc/kdumpd/modules"].decode().split()
    assert modules == [*only_ext4.modules, "/kdumpd/rehearsal/virtio_pci.ko", "/kdumpd/rehearsal/virtio_blk.ko"]
    assert found["kdumpd/rehearsal/virtio_blk.ko"] == b"\x7fELFvirtio_blk"


@pytest.mark.parametrize(("tag", "value"), [("UUID", UUID), ("LABEL", "dumps")])
def test_the_scratch_disk_has_the_name_that_the_settings_ask_for(tag: str, value: str, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    scratch.make_disk(disk, 16 << 20, dataclasses.replace(EXT4, device=f"{tag}={value}"))
    words = ["/usr/sbin/blkid", "-p", "-o", "value", "-s", tag, str(disk)]
    assert subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip() == value
    status = disk.stat()
    assert (status.st_size, status.st_mode & 0o777) == (16 << 20, 0o600)
    assert status.st_blocks << 9 < 4 << 20


def test_a_disk_that_cannot_be_made_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(KdumpError, match="The scratch disk cannot be made: mke2fs: "):
        scratch.make_disk(tmp_path / "disk", 16 << 20, dataclasses.replace(EXT4, device="UUID=none"))
    assert os.listdir(tmp_path) == ["disk"]
