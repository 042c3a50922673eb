# SPDX-License-Identifier: GPL-2.0-or-later
"""Modules and tools for several targets, and for those that are put together from others."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from kdumpd.config.capture import Layer, LayerKind, LocalDestination
from kdumpd.errors import BuildError
from kdumpd.host.kernels import Kernel
from kdumpd.host.mounts import ResolvedTarget
from kdumpd.host.storage import Stack
from kdumpd.image import contents, kmodules, storage

DEP = """\
kernel/drivers/md/dm-mod.ko:
kernel/drivers/md/raid1.ko: kernel/drivers/md/md-mod.ko
kernel/drivers/md/md-mod.ko:
kernel/fs/xfs/xfs.ko:
kernel/fs/fuse/virtiofs.ko: kernel/fs/fuse/fuse.ko
kernel/fs/fuse/fuse.ko:
kernel/drivers/virtio/virtio_pci.ko:
"""
LVM = Layer(kind=LayerKind.LVM, ident=f"LVM-{'a' * 32}{'b' * 32}")
MD = Layer(kind=LayerKind.MD, ident="0a1b2c3d:00112233:44556677:8899aabb", device="/dev/md0")


@pytest.fixture
def index(tmp_path: Path) -> kmodules.ModuleIndex:
    modules = tmp_path / "lib/modules/6.1"
    modules.mkdir(parents=True)
    (modules / "modules.dep").write_text(DEP)
    (modules / "modules.alias").write_text("alias pci:v00001AF4d* virtio_pci\n")
    return kmodules.read_index(Kernel(release="6.1", image=tmp_path / "vmlinuz", modules=modules))


def target(fstype: str = "xfs", *layers: Layer, modules: tuple[str, ...] = ()) -> ResolvedTarget:
    destination = LocalDestination(device="UUID=1", fstype=fstype, directory="/crash", layers=layers)
    return ResolvedTarget(destination=destination, block="dm-0", stack=Stack(disks=(), layers=layers, modules=modules))


def names(paths: tuple[str, ...]) -> list[str]:
    return [kmodules.module_name(path) for path in paths]


def test_drivers_of_layers_come_before_the_filesystem(index: kmodules.ModuleIndex, tmp_path: Path) -> None:
    wanted = target("xfs", MD, LVM, modules=("raid1", "dm_mod"))
    assert names(kmodules.modules_for(index, [wanted], {}, tmp_path)) == ["md_mod", "raid1", "dm_mod", "xfs"]


def test_a_target_without_a_driver_is_a_note_while_another_can_be_used(
    index: kmodules.ModuleIndex, tmp_path: Path
) -> None:
    good, bad = target(), target("jfs")
    notes: list[str] = []
    assert names(kmodules.modules_for(index, [bad, good], {}, tmp_path, notes)) == ["xfs"]
    assert len(notes) == 1
    assert "dumps cannot go to /crash on UUID=1 (jfs)" in notes[0]
    for targets in ([bad], [bad, bad]):
        with pytest.raises(BuildError, match="no jfs filesystem"):
            kmodules.modules_for(index, targets, {}, tmp_path)


def test_an_array_of_a_kind_that_the_kernel_lacks_is_named(index: kmodules.ModuleIndex, tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="has no raid456"):
        kmodules.modules_for(index, [target("xfs", MD, modules=("raid456",))], {}, tmp_path)


def test_a_virtiofs_share_brings_the_bus_of_its_device(index: kmodules.ModuleIndex, tmp_path: Path) -> None:
    pci = tmp_path / "sys/devices/pci0000:00/0000:00:05.0"
    (pci / "virtio4").mkdir(parents=True)
    for folder, driver, modalias in (
        (pci, "virtio-pci", "pci:v00001AF4d1"),
        (pci / "virtio4", "virtiofs", "virtio:d1A"),
    ):
        place = tmp_path / "sys/bus" / driver
        place.mkdir(parents=True)
        (folder / "driver").symlink_to(place)
        (folder / "modalias").write_text(modalias + "\n")
    links = tmp_path / "sys/bus/virtio/drivers/virtiofs"
    links.mkdir(parents=True)
    (links / "virtio4").symlink_to(pci / "virtio4")
    destination = LocalDestination(device="tag", fstype="virtiofs", directory="/crash")
    share = ResolvedTarget(destination=destination, block=None, shared=True)
    assert names(kmodules.modules_for(index, [share], {}, tmp_path)) == ["virtio_pci", "fuse", "virtiofs"]


def test_tools_come_with_settings_and_only_when_they_are_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lvm").write_bytes(b"#!/bin/true\n")
    monkeypatch.setattr(storage, "_FOLDERS", (str(tmp_path),))
    tree = contents.Tree()
    assert storage.add_tools(tree, [target()]) == []
    assert not tree.entries
    assert storage.add_tools(tree, [target("xfs", LVM), target("xfs", LVM)]) == [f"{tmp_path}/lvm"]
    assert tree.entries["usr/sbin/lvm"].content == b"#!/bin/true\n"
    assert b"udev_sync = 0" in tree.entries["etc/kdumpd/lvm/lvm.conf"].content
    with pytest.raises(BuildError, match="mdadm, which the capture image needs") as caught:
        storage.add_tools(tree, [target("xfs", MD)])
    assert caught.value.hint == "install mdadm"


def test_another_stack_makes_the_image_stale() -> None:
    """The words for a person are the same, the disks are not."""
    from kdumpd.config.capture import CaptureConfig
    from kdumpd.config.model import DEFAULT_DUMP, Action
    from kdumpd.image.freshness import _settings
    from kdumpd.image.record import ImageRecord

    capture = CaptureConfig(
        hostname="h",
        kernel="6.1",
        destinations=(target("xfs", LVM).destination,),
        dump=DEFAULT_DUMP,
        final_action=Action.REBOOT,
        failure_action=Action.REBOOT,
    )
    again = CaptureConfig.from_json(capture.to_json(), "test")
    assert again == capture
    moved = dataclasses.replace(capture, destinations=(target("xfs", MD, LVM).destination,))
    record = ImageRecord.__new__(ImageRecord)
    object.__setattr__(record, "capture", capture)
    assert _settings(record, again) == []
    assert "in another way" in _settings(record, moved)[0]
