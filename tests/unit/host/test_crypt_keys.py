# SPDX-License-Identifier: GPL-2.0-or-later
"""Encrypted targets on fixture machines: when the capture kernel would have the key, and why not.

The folder of configfs is a plain one here; that the kernel's own does what is expected is shown by a machine
(tests/vm/test_luks.py).
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kdumpd.config.capture import Layer, LayerKind, LocalDestination
from kdumpd.config.model import Config
from kdumpd.config.targets import RawTarget
from kdumpd.errors import LoadError, TargetError, TargetLockedError, UnsupportedError
from kdumpd.host import crypt_keys, crypto
from kdumpd.host.mounts import resolve_targets
from kdumpd.host.storage import read_stack

if TYPE_CHECKING:
    from conftest import Machine

UUID = "af0405db-8e38-4a1c-a4b7-1a88dbb2f72b"
KEY = f"cryptsetup:{UUID}"
MAPPED = f"CRYPT-LUKS2-{UUID.replace('-', '')}-secret"
LVM = "LVM-" + "AbCdEf0123456789" * 4
ARRAY = "0a1b2c3d:00112233:44556677:8899aabb"
KEYS = f"""\
0a1b2c3d I------     1 perm 1f030000     0 65534 keyring   _uid_ses.0: 1
1b2c3d4e I--Q---     1 perm 3d010000     0     0 logon     {KEY}: 64
"""
CRYPTO = """\
name         : xts(aes)
driver       : xts-aes-aesni
module       : aesni_intel

name         : __ecb(aes)
driver       : __ecb-aes-aesni
module       : aesni-intel

name         : aes
driver       : aes-generic
module       : kernel

name         : crc32c
driver       : crc32c-intel
module       : crc32c_intel

name         : sha256
driver       : sha256-ni
module       : sha256_ssse3
"""


def slaves(machine: Machine, block: str, *names: str) -> None:
    folder = machine.root / f"sys/devices/virtual/block/{block}/slaves"
    folder.mkdir()
    for name in names:
        (folder / name).symlink_to((machine.root / "sys/class/block" / name).resolve())


def header(machine: Machine, block: str) -> None:
    """Makes the device a LUKS volume."""
    path = machine.root / "dev" / block
    with path.open("wb") as file:
        file.truncate(24 << 20)
    options = ["--type", "luks2", "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000", "--uuid", UUID]
    command = ["cryptsetup", "-q", "luksFormat", *options, str(path), "-"]
    subprocess.run(command, input=b"passphrase", check=True, capture_output=True)


def _keys(machine: Machine, text: str = KEYS) -> Path:
    """The kernel has the folder, and these keys."""
    (machine.root / "proc/keys").write_text(text)
    folder = machine.root / "sys/kernel/config/crash_dm_crypt_keys"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(autouse=True)
def _volume(machine: Machine) -> None:
    """dm-0, opened from sda1."""
    machine.disk("sda", "8:0", parts={"sda1": "8:1"})
    machine.virtual("dm-0", "253:0", {"dm/uuid": MAPPED})
    slaves(machine, "dm-0", "sda1")
    (machine.root / "proc/crypto").write_text(CRYPTO)


def test_with_the_key_it_is_a_layer(machine: Machine) -> None:
    header(machine, "sda1")
    _keys(machine)
    stack = read_stack("dm-0", machine.root)
    layer = Layer(kind=LayerKind.CRYPT, ident=UUID)
    assert (stack.disks, stack.layers, stack.modules) == (("sda1",), (layer,), ("dm_crypt",))
    assert stack.ciphers == ("aesni_intel",)
    assert crypt_keys.keys_of([*stack.layers, *stack.layers]) == (KEY,)


def test_volumes_on_it_and_below_it(machine: Machine) -> None:
    """The root of most encrypted machines: LVM on LUKS; here LUKS lies on an array, too."""
    machine.virtual("md0", "9:0", {"md/level": "raid1", "md/metadata_version": "1.0"})
    machine.disk("sdb", "8:16")
    slaves(machine, "md0", "sdb")
    machine.tag_by_id(f"md-uuid-{ARRAY}", "md0")
    machine.virtual("dm-1", "253:1", {"dm/uuid": MAPPED})
    slaves(machine, "dm-1", "md0")
    machine.virtual("dm-2", "253:2", {"dm/uuid": LVM})
    slaves(machine, "dm-2", "dm-1")
    header(machine, "md0")
    _keys(machine)
    machine.tag("uuid", "1111-aaaa", "dm-2")
    machine.mounts("27 1 253:2 / / rw - ext4 /dev/mapper/vg-root rw\n")
    (target,) = resolve_targets(Config(), machine.root)
    assert isinstance(target.destination, LocalDestination)
    assert target.destination.layers == (
        Layer(kind=LayerKind.MD, ident=ARRAY, device="/dev/md0"),
        Layer(kind=LayerKind.CRYPT, ident=UUID, device=ARRAY),
        Layer(kind=LayerKind.LVM, ident=LVM),
    )
    assert target.stack is not None
    assert target.stack.modules == ("raid1", "dm_crypt", "dm_mod")


def test_a_partition_of_an_array_is_refused(machine: Machine) -> None:
    machine.virtual("md0", "9:0", {"md/level": "raid1", "md/metadata_version": "1.0"})
    machine.tag_by_id(f"md-uuid-{ARRAY}", "md0")
    folder = machine.root / "sys/devices/virtual/block/md0/md0p1"
    folder.mkdir()
    (folder / "partition").write_text("1\n")
    (machine.root / "sys/class/block/md0p1").symlink_to(folder)
    machine.virtual("dm-1", "253:1", {"dm/uuid": MAPPED})
    slaves(machine, "dm-1", "md0p1")
    header(machine, "md0p1")
    _keys(machine)
    with pytest.raises(UnsupportedError, match="an encrypted partition of /dev/md0"):
        read_stack("dm-1", machine.root)


def test_a_raw_target_is_refused(machine: Machine) -> None:
    header(machine, "sda1")
    _keys(machine)
    with pytest.raises(UnsupportedError, match="only in a filesystem"):
        resolve_targets(Config(targets=(RawTarget(device="/dev/dm-0"),)), machine.root)


def test_a_kernel_without_the_folder(machine: Machine) -> None:
    (machine.root / "sys/kernel/config").mkdir(parents=True)
    machine.mounts("30 1 0:40 / /sys/kernel/config rw - configfs configfs rw\n")
    with pytest.raises(TargetLockedError, match="this kernel cannot hand over") as caught:
        read_stack("dm-0", machine.root)
    assert "CONFIG_CRASH_DM_CRYPT" in (caught.value.hint or "")
    machine.mounts("")
    with pytest.raises(TargetLockedError, match="configfs is not mounted") as caught:
        read_stack("dm-0", machine.root)
    assert "sys-kernel-config.mount" in (caught.value.hint or "")


@pytest.mark.parametrize(
    "text",
    [
        "",
        KEYS.replace("logon", "user "),
        KEYS.replace(KEY, KEY + "-d0"),
        KEYS.replace("     0     0 logon", "  1000  1000 logon"),
        KEYS.replace("perm 3d", "expd 3d"),
        KEYS.replace("I--Q---     1 perm 3d", "IR-Q---     1 perm 3d"),
        KEYS.replace("I--Q---     1 perm 3d", "I--Q--i     1 perm 3d"),
        KEYS.replace("I--Q---     1 perm 3d", "---QU--     1 perm 3d"),
    ],
)
def test_without_the_key_there_is_the_command(machine: Machine, text: str) -> None:
    _keys(machine, text)
    with pytest.raises(TargetLockedError, match=r"the target /dev/dm-0 is .* not in root's keyring") as caught:
        read_stack("dm-0", machine.root)
    assert f"link-volume-key=@u::%logon:{KEY}" in (caught.value.hint or "")
    assert crypt_keys.link_command(UUID) in (caught.value.hint or "")


def test_what_the_header_does_not_say(machine: Machine) -> None:
    """A header that lies elsewhere, and a device that is gone."""
    _keys(machine)
    (machine.root / "dev/sda1").write_bytes(bytes(1 << 20))
    with pytest.raises(TargetError, match="no LUKS header at its beginning"):
        read_stack("dm-0", machine.root)
    (machine.root / "dev/sda1").unlink()
    with pytest.raises(TargetError, match="cannot be read: No such file"):
        read_stack("dm-0", machine.root)


@pytest.mark.parametrize("mapped", ["CRYPT-PLAIN-x", "CRYPT-BITLK-x", "CRYPT-LUKS2-x", "CRYPT-TCRYPT-x"])
def test_other_encryption_is_locked(machine: Machine, mapped: str) -> None:
    _keys(machine)
    machine.virtual("dm-1", "253:1", {"dm/uuid": mapped})
    with pytest.raises(TargetLockedError, match="without a LUKS header"):
        read_stack("dm-1", machine.root)


def test_keys_that_come_and_go_are_seen(machine: Machine) -> None:
    (machine.root / "proc/keys").write_text(KEYS)
    assert crypt_keys.read_keys(machine.root) is None
    _keys(machine)
    assert crypt_keys.read_keys(machine.root) == KEY
    _keys(machine, KEYS.replace("     1 perm 3d", "     7 perm 3d"))
    assert crypt_keys.read_keys(machine.root) == KEY
    _keys(machine, "")
    assert crypt_keys.read_keys(machine.root) == ""


def test_modules_of_a_cipher(tmp_path: Path) -> None:
    (tmp_path / "proc/crypto").unlink()
    assert crypto.modules_of("aes-xts-plain64", tmp_path) == ()
    (tmp_path / "proc/crypto").write_text(CRYPTO)
    assert crypto.modules_of("aes-xts-plain64", tmp_path) == ("aesni_intel",)
    assert crypto.modules_of("aes-cbc-essiv:sha256", tmp_path) == ("aesni_intel", "sha256_ssse3")
    assert crypto.modules_of("capi:xts(aes)-plain64", tmp_path) == ("aesni_intel",)


class Configfs:
    """The folder, with a kernel behind it that counts."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True)
        (folder / "reuse").write_text("0\n")
        self.count()

    def count(self, more: int = 0) -> None:
        """Sets `count`, as if there were `more`."""
        (self.folder / "count").write_text(f"{len(self.names()) + more}\n")

    def names(self) -> dict[str, str]:
        return {path.name: (path / "description").read_text() for path in self.folder.iterdir() if path.is_dir()}

    def add(self, name: str, text: str) -> None:
        (self.folder / name).mkdir()
        (self.folder / name / "description").write_text(text)


@pytest.fixture
def configfs(tmp_path: Path) -> Configfs:
    return Configfs(tmp_path / "kernel/sys/kernel/config/crash_dm_crypt_keys")


def _found(wanted: str) -> bool:
    return wanted == KEY


def test_keys_are_named(configfs: Configfs, tmp_path: Path) -> None:
    root = tmp_path / "kernel"
    configfs.count(1)
    assert not crypt_keys.is_in_use(root)
    crypt_keys.name_keys([KEY], _found, root)
    assert configfs.names() == {f"kdumpd-cryptsetup-{UUID}": KEY + "\n"}
    assert crypt_keys.is_in_use(root)
    crypt_keys.name_keys([KEY], _found, root)
    assert len(configfs.names()) == 1


def test_keys_that_are_not_wanted_any_more_go_and_others_stay(configfs: Configfs, tmp_path: Path) -> None:
    configfs.add("theirs", "cryptsetup:other\n")
    (configfs.folder / "kdumpd-old").mkdir()  # empty, as configfs removes a folder with its attributes
    (configfs.folder / "count").write_text("2\n")
    crypt_keys.name_keys([KEY], _found, tmp_path / "kernel")
    assert sorted(configfs.names()) == [f"kdumpd-cryptsetup-{UUID}", "theirs"]


def test_a_kernel_that_counts_otherwise_is_noticed(configfs: Configfs, tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=r"counts 0 keys .* 1 are named"):
        crypt_keys.name_keys([KEY], _found, tmp_path / "kernel")


def test_nothing_is_asked_of_a_kernel_without(tmp_path: Path) -> None:
    crypt_keys.name_keys([], _found, tmp_path)
    assert not crypt_keys.is_in_use(tmp_path)
    with pytest.raises(LoadError, match="there is no /sys/kernel/config/crash_dm_crypt_keys"):
        crypt_keys.name_keys([KEY], _found, tmp_path)


def test_a_key_that_is_gone_touches_nothing(configfs: Configfs, tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=f"{KEY}, is not in root's keyring"):
        crypt_keys.name_keys([KEY], lambda wanted: False, tmp_path / "kernel")
    assert configfs.names() == {}


def test_reuse_is_taken_back(configfs: Configfs, tmp_path: Path) -> None:
    configfs.count(1)
    (configfs.folder / "reuse").write_text("1\n")
    crypt_keys.name_keys([KEY], _found, tmp_path / "kernel")
    assert (configfs.folder / "reuse").read_text() == "0\n"


def test_a_kernel_that_took_no_keys_is_noticed(configfs: Configfs, tmp_path: Path) -> None:
    crypt_keys.require_handed_over(tmp_path / "kernel")
    (configfs.folder / "reuse").unlink()
    (configfs.folder / "reuse").symlink_to("/proc/self/mem/x")
    with pytest.raises(LoadError, match="without the keys of the encrypted target"):
        crypt_keys.require_handed_over(tmp_path / "kernel")
