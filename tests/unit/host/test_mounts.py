# SPDX-License-Identifier: GPL-2.0-or-later
"""The target, resolved on fixture machines: trees with mountinfo, sysfs and udev's links."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kdumpd.config.capture import LocalDestination
from kdumpd.config.model import Action, Config
from kdumpd.config.targets import LocalTarget
from kdumpd.errors import TargetError, UnsupportedError
from kdumpd.host.mounts import mount_of, parse_mountinfo, real_path, resolve_all, resolve_targets

if TYPE_CHECKING:
    from conftest import Machine

ROOT = "27 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n"
PROC = "22 27 0:21 / /proc rw - proc proc rw\n"


def resolved(config: Config, root: Path) -> tuple[LocalDestination, str | None]:
    """The only target, and its block device."""
    (target,) = resolve_targets(config, root)
    assert isinstance(target.destination, LocalDestination)
    return target.destination, target.block


@pytest.fixture(autouse=True)
def _disks(machine: Machine) -> None:
    machine.disk("sda", "8:0", parts={"sda1": "8:1", "sda2": "8:2"})
    machine.tag("uuid", "1111-aaaa", "sda1")
    machine.tag("uuid", "2222-bbbb", "sda2")
    machine.tag("label", r"crash\x20disk", "sda2")


def test_octal_escapes_and_optional_fields_are_read() -> None:
    text = r"36 35 98:0 /mnt\0401 /mnt/two\040words\011x rw,noatime master:1 shared:2 - ext3 /dev/root\134x rw" + "\n"
    (mount,) = parse_mountinfo(text)
    assert mount.root == "/mnt 1"
    assert mount.mountpoint == "/mnt/two words\tx"
    assert mount.fstype == "ext3"
    assert mount.source == "/dev/root\\x"


def test_lines_of_another_shape_are_left_out() -> None:
    assert parse_mountinfo("rubbish\n\n1 2 3 - \n") == ()


def test_the_deepest_mount_holds_a_path_and_the_last_of_equal_ones() -> None:
    mounts = parse_mountinfo(
        ROOT
        + "28 27 8:2 / /var rw - ext4 /dev/sda2 rw\n"
        + "29 28 8:3 / /var rw - xfs /dev/sda3 rw\n"
        + "30 27 8:4 / /var/crash2 rw - xfs /dev/sda4 rw\n"
    )
    found = mount_of(mounts, "/var/crash")
    assert found is not None
    assert found.source == "/dev/sda3"
    assert mount_of(mounts, "/var/crash2/deep").source == "/dev/sda4"  # type: ignore[union-attr]


def test_the_default_target_is_the_filesystem_that_holds_the_path(machine: Machine) -> None:
    machine.mounts(ROOT + PROC)
    target, block = resolved(Config(), machine.root)
    assert (target.device, target.fstype) == ("UUID=1111-aaaa", "ext4")
    assert (target.directory, block) == ("/var/crash", "sda1")


def test_a_folder_on_a_filesystem_of_its_own_is_named_as_it_is_called_there(machine: Machine) -> None:
    machine.mounts(ROOT + "28 27 8:2 / /var rw - xfs /dev/sda2 rw\n")
    target, _ = resolved(Config(), machine.root)
    assert (target.device, target.fstype, target.directory) == ("UUID=2222-bbbb", "xfs", "/crash")


def test_a_bind_mount_leads_to_the_folder_behind_it(machine: Machine) -> None:
    machine.mounts(ROOT + "28 27 8:2 /dumps/all /var/crash rw - ext4 /dev/sda2 rw\n")
    target, _ = resolved(Config(path="/var/crash/mine"), machine.root)
    assert (target.device, target.directory) == ("UUID=2222-bbbb", "/dumps/all/mine")


def test_a_symbolic_link_in_the_path_is_followed(machine: Machine) -> None:
    machine.mounts(ROOT + "28 27 8:2 / /data rw - ext4 /dev/sda2 rw\n")
    (machine.root / "var").mkdir()
    (machine.root / "var/crash").symlink_to("/data/crash")
    target, block = resolved(Config(), machine.root)
    assert (block, target.directory) == ("sda2", "/crash")


def test_links_that_go_round_in_circles_are_told(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(TargetError, match="circles"):
        real_path("/a/x", tmp_path)


@pytest.mark.parametrize("device", ["UUID=2222-BBBB", "LABEL=crash disk", "/dev/sda2", "/dev/disk/by-uuid/2222-bbbb"])
def test_an_explicit_target_is_found_by_any_of_its_names(machine: Machine, device: str) -> None:
    config = Config(targets=(LocalTarget(fstype="ext4", device=device),), path="/dumps")
    target, block = resolved(config, machine.root)
    assert (block, target.directory) == ("sda2", "/dumps")
    assert target.device == (device if "=" in device else "UUID=2222-bbbb")


@pytest.mark.parametrize("device", ["UUID=3333", "LABEL=nothing", "/dev/sdz9"])
def test_a_device_that_is_missing_is_named(machine: Machine, device: str) -> None:
    with pytest.raises(TargetError, match=device) as caught:
        resolved(Config(targets=(LocalTarget(fstype="ext4", device=device),)), machine.root)
    assert caught.value.hint


def test_an_explicit_target_of_another_filesystem_is_refused(machine: Machine) -> None:
    machine.mounts(ROOT + "28 27 8:2 / /dumps rw - xfs /dev/sda2 rw\n")
    with pytest.raises(TargetError, match=r"holds xfs, but /etc/kdump\.conf says ext4"):
        resolved(Config(targets=(LocalTarget(fstype="ext4", device="/dev/sda2"),)), machine.root)
    assert resolved(Config(targets=(LocalTarget(fstype="ext3", device="/dev/sda1"),)), machine.root)[0].fstype == "ext3"


@pytest.mark.parametrize(
    ("line", "error", "words"),
    [
        ("28 27 0:40 / /var rw - tmpfs tmpfs rw\n", TargetError, "tmpfs, which does not outlive"),
        ("28 27 0:40 / /var rw - overlay overlay rw\n", TargetError, "overlay filesystem without a block device"),
        ("28 27 0:40 / /var rw - nfs4 server:/dumps rw\n", UnsupportedError, "server:/dumps, a network filesystem"),
    ],
)
def test_what_a_capture_kernel_could_not_mount_is_refused(
    machine: Machine, line: str, error: type[Exception], words: str
) -> None:
    machine.mounts(ROOT + line)
    with pytest.raises(error, match=words):
        resolved(Config(), machine.root)


def test_btrfs_with_its_number_of_its_own_is_found_by_its_source(machine: Machine) -> None:
    machine.mounts(ROOT + "28 27 0:40 / /var rw - btrfs /dev/sda2 rw\n")
    target, block = resolved(Config(), machine.root)
    assert (block, target.directory) == ("sda2", "/crash")


def test_a_btrfs_subvolume_is_a_folder_of_the_uppermost_one(machine: Machine) -> None:
    machine.mounts(ROOT + "28 27 0:40 /@/var /var rw - btrfs /dev/sda2 rw\n")
    target, _ = resolved(Config(), machine.root)
    assert (target.directory, target.options) == ("/@/var/crash", "subvolid=5")


def test_a_btrfs_on_two_disks_is_refused(machine: Machine) -> None:
    machine.mounts(ROOT + "28 27 0:40 / /var rw - btrfs /dev/sda2 rw\n")
    folder = machine.root / "sys/fs/btrfs/2222-bbbb/devices"
    folder.mkdir(parents=True)
    for name in ("sda1", "sda2"):
        (folder / name).touch()
    with pytest.raises(UnsupportedError, match="on several disks"):
        resolved(Config(), machine.root)


def test_fat_gets_modes_when_it_is_mounted(machine: Machine) -> None:
    machine.mounts(ROOT)
    target, _ = resolved(Config(targets=(LocalTarget(fstype="vfat", device="UUID=2222-bbbb"),)), machine.root)
    assert target.options == "umask=0077"


def test_a_virtiofs_share_rests_on_no_block_device(machine: Machine) -> None:
    target, block = resolved(Config(targets=(LocalTarget(fstype="virtiofs", device="dumps"),)), machine.root)
    assert (target.device, target.fstype, block) == ("dumps", "virtiofs", None)


def test_what_cannot_be_used_of_several_targets_is_told_and_the_rest_stays(machine: Machine) -> None:
    machine.mounts(ROOT)
    missing, there = (LocalTarget(fstype="ext4", device=f"UUID={uuid}") for uuid in ("3333-cccc", "2222-bbbb"))
    found = resolve_all(Config(targets=(missing, there)), machine.root)
    assert [str(target.destination) for target in found.targets] == ["/var/crash on UUID=2222-bbbb (ext4)"]
    assert ["3333-cccc" in error.sentence for error in found.troubles] == [True]
    with pytest.raises(TargetError, match="3333-cccc"):
        resolve_all(Config(targets=(missing, missing)), machine.root)


def test_a_root_mounted_by_the_kernel_itself_gets_its_real_name(machine: Machine) -> None:
    machine.disk("vdb", "254:16")
    machine.mounts("27 1 254:16 / / rw - ext4 /dev/root rw\n")
    assert resolved(Config(), machine.root)[0].device == "/dev/vdb"


def test_without_mountinfo_the_reason_is_told(machine: Machine) -> None:
    with pytest.raises(TargetError, match="cannot be listed"):
        resolved(Config(), machine.root)


def test_this_machine_resolves_or_says_why() -> None:
    try:
        target, block = resolved(Config(path="/"), Path("/"))
    except (TargetError, UnsupportedError) as error:
        assert error.hint
    else:
        assert target.directory.startswith("/")
        assert block is not None
        assert Path("/sys/class/block", block).exists()


def test_dump_to_rootfs_is_a_last_target(machine: Machine) -> None:
    machine.mounts(ROOT + "28 27 8:2 / /var rw - ext4 /dev/sda2 rw\n")
    asked = Config(failure_action=Action.DUMP_TO_ROOTFS)
    first, last = (target.destination for target in resolve_targets(asked, machine.root))
    assert isinstance(first, LocalDestination)
    assert isinstance(last, LocalDestination)
    assert (first.device, first.directory) == ("UUID=2222-bbbb", "/crash")
    assert (last.device, last.directory) == ("UUID=1111-aaaa", "/var/crash")
    machine.mounts(ROOT)
    assert len(resolve_targets(asked, machine.root)) == 1  # it is the same place
    gone = Config(targets=(LocalTarget(fstype="ext4", device="LABEL=gone"),), failure_action=Action.DUMP_TO_ROOTFS)
    found = resolve_all(gone, machine.root)
    assert (len(found.targets), len(found.troubles)) == (1, 1)
