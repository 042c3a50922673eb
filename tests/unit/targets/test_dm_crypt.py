# SPDX-License-Identifier: GPL-2.0-or-later
"""The table of an encrypted volume, and which device it lies on. That the kernel takes it is shown by a machine
(tests/vm/test_luks.py).
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kdumpd.config.capture import Layer, LayerKind
from kdumpd.config.luks import HEADER_BYTES, Volume
from kdumpd.errors import TargetError
from kdumpd.targets import dm_crypt, layers

UUID = "af0405db-8e38-4a1c-a4b7-1a88dbb2f72b"
MIB = 1 << 20
VOLUME = Volume(
    cipher="aes-xts-plain64", key_bytes=64, offset_bytes=16 * MIB, size_bytes=None, iv_sectors=0, sector_bytes=512
)
KEY = f":64:user:cryptsetup:{UUID}"


def test_the_table_names_the_key_and_does_not_hold_it() -> None:
    number = os.makedev(8, 1)
    assert dm_crypt.table(VOLUME, UUID, number, 24 * MIB) == (16384, f"aes-xts-plain64 {KEY} 0 8:1 32768")


def test_larger_sectors_and_an_end() -> None:
    volume = Volume(
        cipher="aes-xts-plain64", key_bytes=64, offset_bytes=MIB, size_bytes=None, iv_sectors=8, sector_bytes=4096
    )
    # The rest that makes no sector of 4096 bytes is left out, as device-mapper demands.
    found = dm_crypt.table(volume, UUID, os.makedev(259, 3), 2 * MIB + 1536)
    assert found == (2048, f"aes-xts-plain64 {KEY} 8 259:3 2048 1 sector_size:4096")


@pytest.mark.parametrize(("size", "wanted"), [(MIB, 16 * MIB), (16 * MIB, None), (17 * MIB, 2 * MIB)])
def test_a_device_that_is_too_small(size: int, wanted: int | None) -> None:
    volume = Volume(
        cipher="aes-xts-plain64", key_bytes=64, offset_bytes=16 * MIB, size_bytes=wanted, iv_sectors=0, sector_bytes=512
    )
    with pytest.raises(TargetError, match="smaller than its header says"):
        dm_crypt.table(volume, UUID, 0, size)


def test_the_structures_have_the_sizes_of_the_kernel() -> None:
    """sizeof struct dm_ioctl and struct dm_target_spec, and DM_TABLE_LOAD as strace prints it."""
    assert (dm_crypt._IOCTL.size, dm_crypt._TARGET.size) == (312, 40)
    assert dm_crypt._REQUEST | dm_crypt._TABLE_LOAD == 0xC138FD09


class Disks:
    """/sys/class/block and /dev of a folder."""

    def __init__(self, folder: Path) -> None:
        self.sys, self.dev = folder / "sys", folder / "dev"
        self.sys.mkdir()
        self.dev.mkdir()

    def add(self, name: str, uuid: str = "", *holders: str) -> None:
        (self.sys / name / "holders").mkdir(parents=True)
        for holder in holders:
            (self.sys / name / "holders" / holder).mkdir()
        head = b"LUKS\xba\xbe\0\2".ljust(168, b"\0") + uuid.encode() if uuid else b""
        (self.dev / name).write_bytes(head.ljust(HEADER_BYTES, b"\0"))


@pytest.fixture
def disks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Disks:
    found = Disks(tmp_path)
    monkeypatch.setattr(dm_crypt, "_SYSFS", found.sys)
    monkeypatch.setattr(dm_crypt, "_DEV", found.dev)
    return found


def test_the_one_disk_with_the_header(disks: Disks) -> None:
    disks.add("sda")
    disks.add("sda1", UUID)
    disks.add("sdb", UUID.replace("a", "b"))
    (disks.sys / "sr0/holders").mkdir(parents=True)  # no medium
    (disks.sys / "sdc/holders").mkdir(parents=True)  # gone
    assert dm_crypt.find(UUID) == disks.dev / "sda1"


def test_members_and_what_is_made_of_others_are_not_looked_at(disks: Disks) -> None:
    """A mirror with its metadata at the end looks like the encrypted volume on it, and so does each half of it."""
    disks.add("sda1", UUID, "md0")
    disks.add("md0", UUID)
    disks.add("dm-3", UUID)
    with pytest.raises(TargetError, match="no disk has a LUKS header"):
        dm_crypt.find(UUID)


def test_two_that_say_the_same_are_refused(disks: Disks) -> None:
    disks.add("sda1", UUID)
    disks.add("sdb1", UUID)
    with pytest.raises(TargetError, match=r"sda1 and .*sdb1 both say"):
        dm_crypt.find(UUID)


def test_a_kernel_that_takes_no_keys(disks: Disks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dm_crypt, "KEYS", tmp_path / "config/crash_dm_crypt_keys")
    with pytest.raises(TargetError, match="CONFIG_CRASH_DM_CRYPT"):
        dm_crypt.restore_keys()


def test_keys_are_restored_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dm_crypt, "KEYS", tmp_path)
    monkeypatch.setattr(dm_crypt, "use_root_keys", lambda: None)
    restore = tmp_path / "restore"
    restore.write_text("0\n")
    dm_crypt.restore_keys()
    assert restore.read_text() == "1\n"
    restore.chmod(0o400)
    restore.write_text("1  \n")
    dm_crypt.restore_keys()
    assert restore.read_text() == "1  \n"


def test_what_is_missing_is_told_when_the_time_is_over(disks: Disks, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "_SYSFS", disks.sys)
    layer = Layer(kind=LayerKind.CRYPT, ident=UUID)
    with pytest.raises(TargetError, match=f"the encrypted volume {UUID} could not be .* within 0 s: no disk has"):
        layers.bring_up([layer], 0.01, lambda: None)
