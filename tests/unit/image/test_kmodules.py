# SPDX-License-Identifier: GPL-2.0-or-later
"""Which modules, in which order: on a small index with the traps of real ones."""

from __future__ import annotations

import fnmatch
import gzip
import lzma
from pathlib import Path

import pytest
import zstandard

from kdumpd.errors import BuildError
from kdumpd.host.blockdev import BlockChain, Device
from kdumpd.host.kernels import Kernel
from kdumpd.image import kmodules

DEP = """\
kernel/fs/ext4/ext4.ko: kernel/crypto/crc16.ko kernel/fs/jbd2/jbd2.ko kernel/fs/mbcache.ko
kernel/fs/jbd2/jbd2.ko:
kernel/fs/mbcache.ko:
kernel/crypto/crc16.ko:
kernel/crypto/crc32c_generic.ko:
kernel/arch/x86/crypto/crc32c-intel.ko:
kernel/fs/fat/fat.ko:
kernel/fs/fat/vfat.ko: kernel/fs/fat/fat.ko
kernel/fs/nls/nls_cp437.ko:
kernel/fs/nls/nls_ascii.ko:
kernel/drivers/virtio/virtio.ko:
kernel/drivers/virtio/virtio_ring.ko: kernel/drivers/virtio/virtio.ko
kernel/drivers/virtio/virtio_pci.ko.xz: kernel/drivers/virtio/virtio_ring.ko kernel/drivers/virtio/virtio.ko
kernel/drivers/block/virtio_blk.ko: kernel/drivers/virtio/virtio_ring.ko kernel/drivers/virtio/virtio.ko
kernel/drivers/scsi/sd_mod.ko:
kernel/drivers/loop/round-one.ko:
kernel/drivers/loop/round-two.ko:
"""
ALIAS = """\
# Aliases extracted from modules themselves.
alias fs-ext4 ext4
alias fs-ext3 ext4
alias fs-vfat vfat
alias crypto-crc32c crc32c_generic
alias crc32c crc32c_intel
alias crc32c crc32c_generic
alias virtio:d00000002v* virtio_blk
alias pci:v00001AF4d*sv*sd*bc*sc*i* virtio_pci
"""
SOFTDEP = "softdep ext4 pre: crc32c\nsoftdep round_one pre: round-two\nsoftdep round_two post: round-one\n"
PCI = Device(path="pci", modalias="pci:v00001AF4d00001042sv1sd1bc01sc00i00", driver="virtio-pci", module="virtio_pci")
BLK = Device(path="pci/virtio1", modalias="virtio:d00000002v00001AF4", driver="virtio_blk", module="virtio_blk")


@pytest.fixture
def kernel(tmp_path: Path) -> Kernel:
    modules = tmp_path / "lib/modules/6.1"
    modules.mkdir(parents=True)
    (modules / "modules.dep").write_text(DEP)
    (modules / "modules.alias").write_text(ALIAS)
    (modules / "modules.softdep").write_text(SOFTDEP)
    (modules / "modules.builtin").write_text("kernel/drivers/nvme/host/nvme.ko\nkernel/fs/xfs/xfs.ko\n")
    (modules / "modules.builtin.modinfo").write_bytes(b"nvme.license=GPL\0nvme.alias=pci:v*d*bc01sc08i02*\0")
    return Kernel(release="6.1", image=tmp_path / "vmlinuz", modules=modules)


def _names(paths: tuple[str, ...]) -> list[str]:
    return [kmodules.module_name(path) for path in paths]


def _chain(*devices: Device) -> BlockChain:
    return BlockChain(block="vda1", disk="vda", devices=devices)


def test_bus_disk_and_filesystem_in_the_order_of_loading(kernel: Kernel) -> None:
    paths = kmodules.needed_modules(kmodules.read_index(kernel), _chain(BLK, PCI), "ext4", None)
    names = _names(paths)
    assert set(names) == {
        *("virtio", "virtio_ring", "virtio_pci", "virtio_blk"),
        *("ext4", "jbd2", "mbcache", "crc16", "crc32c_generic", "crc32c_intel"),
    }
    assert len(names) == len(set(names))
    for before, after in (
        ("virtio", "virtio_ring"),
        ("virtio_ring", "virtio_pci"),
        ("virtio_pci", "virtio_blk"),
        ("crc32c_intel", "ext4"),
        ("jbd2", "ext4"),
    ):
        assert names.index(before) < names.index(after)
    assert "kernel/drivers/virtio/virtio_pci.ko.xz" in paths


def test_what_is_built_in_needs_no_module(kernel: Kernel) -> None:
    index = kmodules.read_index(kernel)
    nvme = Device(path="nvme", modalias="pci:v1d2bc01sc08i02", driver="nvme", module="nvme")
    assert kmodules.needed_modules(index, _chain(nvme), "xfs", None) == ("kernel/crypto/crc32c_generic.ko",)
    # The running kernel has another name for it; the alias tells that this one has it built in.
    renamed = Device(path="nvme", modalias="pci:v1d2bc01sc08i02", driver="nvme2", module="nvme2")
    assert kmodules.needed_modules(index, _chain(renamed), "vfat", {})[0].endswith("fat.ko")


def test_a_driver_built_into_the_running_kernel_is_a_module_of_another(kernel: Kernel) -> None:
    disk = Device(path="sd", modalias="scsi:t-0x00", driver="sd", module=None)
    virtio = Device(path="v", modalias=BLK.modalias, driver="something", module=None)
    index = kmodules.read_index(kernel)
    names = _names(kmodules.needed_modules(index, _chain(disk, virtio), "xfs", None))
    assert "sd_mod" in names
    assert "virtio_blk" in names


def test_vfat_brings_its_character_sets(kernel: Kernel) -> None:
    config = {"CONFIG_FAT_DEFAULT_CODEPAGE": "437", "CONFIG_FAT_DEFAULT_IOCHARSET": "ascii"}
    names = _names(kmodules.needed_modules(kmodules.read_index(kernel), None, "vfat", config))
    assert sorted(names) == ["fat", "nls_ascii", "nls_cp437", "vfat"]


def test_a_filesystem_goes_by_its_alias(kernel: Kernel) -> None:
    assert "ext4" in _names(kmodules.needed_modules(kmodules.read_index(kernel), None, "ext3", None))


def test_what_this_kernel_does_not_have_is_named(kernel: Kernel) -> None:
    index = kmodules.read_index(kernel)
    with pytest.raises(BuildError, match="no f2fs filesystem"):
        kmodules.needed_modules(index, None, "f2fs", None)
    odd = Device(path="pci/odd", modalias="pci:vFFFF", driver="odd", module="odd_disk")
    with pytest.raises(BuildError, match=r"driver odd_disk \(pci/odd\)"):
        kmodules.needed_modules(index, _chain(odd), "ext4", None)


def test_soft_dependencies_in_a_circle_end(kernel: Kernel) -> None:
    names = _names(kmodules.order(kmodules.read_index(kernel), ["round_one"]))
    assert names == ["round_two", "round_one"]


def test_a_watchdog_whose_driver_is_missing_is_told(kernel: Kernel) -> None:
    index = kmodules.read_index(kernel)
    notes: list[str] = []
    assert _names(kmodules.for_watchdogs(index, ("nvme", "virtio_ring"), notes)) == ["virtio", "virtio_ring"]
    assert notes == []  # what is built in needs none
    assert kmodules.for_watchdogs(index, ("watchdog0",), notes) == ()
    assert notes == ["the kernel has no driver watchdog0: that watchdog, which is armed, may end a capture early"]


def test_without_an_index_the_cure_is_told(kernel: Kernel) -> None:
    (kernel.modules / "modules.dep").unlink()
    with pytest.raises(BuildError) as caught:
        kmodules.read_index(kernel)
    assert caught.value.hint == "depmod 6.1"


def test_modules_come_out_unpacked(tmp_path: Path) -> None:
    module = b"\x7fELF" + bytes(5000)
    packed = {
        "a.ko": module,
        "a.ko.gz": gzip.compress(module),
        "a.ko.xz": lzma.compress(module),
        "a.ko.zst": zstandard.compress(module),
    }
    for name, data in packed.items():
        (tmp_path / name).write_bytes(data)
        assert kmodules.read_module(tmp_path / name) == module
    for name, data in list(packed.items())[1:]:
        (tmp_path / name).write_bytes(data[: len(data) // 2])
        with pytest.raises(BuildError, match=r"cannot be read|is damaged"):
            kmodules.read_module(tmp_path / name)
    with pytest.raises(BuildError, match="cannot be read"):
        kmodules.read_module(tmp_path / "gone.ko")


def test_aliases_match_as_patterns_do_and_few_are_compiled(tmp_path: Path) -> None:
    patterns = [
        "pci:v00001AF4d*",
        "pci:v*d*bc01*",
        "*",
        "virtio:d0000000[2-4]v*",
        "fs-ext4",
        "us?:x",
        "pci:v00001AF5d*",
    ]
    many = tuple((f"usb:v{number:04X}p*", "usb") for number in range(5000))
    aliases = (*((pattern, f"m{number}") for number, pattern in enumerate(patterns)), *many)
    index = kmodules.ModuleIndex(
        folder=tmp_path, depends={}, builtin=frozenset(), aliases=aliases, builtin_aliases=(), softdeps={}
    )
    kept = fnmatch._compile_pattern.cache_info().misses  # type: ignore[attr-defined]
    for wanted in ("pci:v00001AF4d00001001bc01", "virtio:d00000002v00001AF4", "fs-ext4", "usb:x", ""):
        slowly = [name for pattern, name in aliases[:7] if fnmatch.fnmatchcase(wanted, pattern)]
        assert [name for name in index.by_alias(wanted) if name != "usb"] == slowly
    assert fnmatch._compile_pattern.cache_info().misses - kept < 50  # type: ignore[attr-defined]
