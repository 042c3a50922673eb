# SPDX-License-Identifier: GPL-2.0-or-later
"""kdumpd.image.board and board_folder: what a board's kernel says of itself, and what goes to the board."""

from __future__ import annotations

import gzip
import os
import shutil
import stat
import struct
import subprocess
from pathlib import Path

import pytest
from fake_machine import bzimage

from kdumpd.config.capture import CaptureConfig, LocalDestination
from kdumpd.config.model import DEFAULT_DUMP, Action
from kdumpd.errors import BuildError, KdumpError, LoadError, NotFoundError, UnsupportedError
from kdumpd.host.fdt import DeviceTree, Node
from kdumpd.image import board, board_folder, cpio
from kdumpd.image.origin import PYTHON, Origin

RELEASE = "6.6.30-board"
CONFIG = """\
CONFIG_BLK_DEV_INITRD=y
CONFIG_DEVTMPFS=y
CONFIG_PROC_VMCORE=y
CONFIG_CRASH_DUMP=y
CONFIG_KEXEC=y
CONFIG_PROC_KCORE=y
CONFIG_EXT4_FS=y
"""


def image(config: str | None = CONFIG, banner: bytes = f"Linux version {RELEASE} (me@here) ".encode()) -> bytes:
    head = struct.pack("<IIQQQ", 0x91005A4D, 0, 0, 40 << 20, 0xA) + bytes(24) + b"ARM\x64" + bytes(4)
    carried = b"" if config is None else b"IKCFG_ST" + gzip.compress(config.encode(), mtime=0) + b"IKCFG_ED"
    return head + bytes(4096) + banner + b"\0" + carried


@pytest.fixture
def kernel(tmp_path: Path) -> Path:
    path = tmp_path / "Image"
    path.write_bytes(image())
    return path


def capture(fstype: str = "ext4") -> CaptureConfig:
    return CaptureConfig(
        hostname="board", kernel=RELEASE, dump=DEFAULT_DUMP, final_action=Action.REBOOT, failure_action=Action.REBOOT,
        destinations=(LocalDestination(device="LABEL=X", fstype=fstype, directory="/var/crash"),),
    )  # fmt: skip


def request(kernel: Path, root: Path, **changes: object) -> board.BoardRequest:
    fields: dict[str, object] = {
        "kernel": board.read_kernel(kernel, None, None), "capture": capture(), "origin": Origin(root=root),
        "modules": None, **changes,
    }  # fmt: skip
    return board.BoardRequest(**fields)  # type: ignore[arg-type]


def test_a_kernel_is_known_by_its_file(kernel: Path) -> None:
    found = board.read_kernel(kernel, None, None)
    assert (found.release, found.arch) == (RELEASE, "aarch64")
    assert found.config is not None and found.config["CONFIG_KEXEC"] == "y"


def test_a_packed_kernel_too(kernel: Path) -> None:
    kernel.write_bytes(gzip.compress(image()))
    assert board.read_kernel(kernel, "aarch64", None).release == RELEASE


def test_a_configuration_beside_it_counts_more(kernel: Path, tmp_path: Path) -> None:
    file = tmp_path / "config"
    file.write_text("CONFIG_KEXEC_FILE=y\n")
    assert board.read_kernel(kernel, None, file).config == {"CONFIG_KEXEC_FILE": "y"}
    kernel.write_bytes(image(None))
    assert board.read_kernel(kernel, None, None).config is None
    with pytest.raises(BuildError, match="cannot be read"):
        board.read_kernel(kernel, None, tmp_path / "missing")


@pytest.mark.parametrize(
    ("data", "arch", "kind", "words"),
    [
        (None, None, NotFoundError, "there is no kernel"),
        (b"x" * 8192, None, LoadError, "not a Linux kernel"),
        (image(), "x86_64", LoadError, "is a kernel for aarch64"),
        (image(banner=b""), None, LoadError, "does not say which release"),
        (image(banner=b"Linux version 6.6/../../x (me) "), None, LoadError, "no kernel release"),
    ],
)
def test_what_is_no_kernel_gets_a_sentence(
    kernel: Path, data: bytes | None, arch: str | None, kind: type[KdumpError], words: str
) -> None:
    kernel.unlink()
    if data is not None:
        kernel.write_bytes(data)
    with pytest.raises(kind, match=words):
        board.read_kernel(kernel, arch, None)


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("CONFIG_CRASH_DUMP", "be a capture kernel: it was built without CONFIG_CRASH_DUMP"),
        ("CONFIG_PROC_VMCORE", "built without CONFIG_PROC_VMCORE"),
        ("CONFIG_PROC_KCORE", "built without CONFIG_PROC_KCORE"),
        ("CONFIG_KEXEC", "built without CONFIG_KEXEC and CONFIG_KEXEC_FILE"),
    ],
)
def test_a_kernel_without_an_option_is_refused(kernel: Path, tmp_path: Path, option: str, words: str) -> None:
    kernel.write_bytes(image(CONFIG.replace(f"{option}=y\n", "")))
    with pytest.raises(UnsupportedError, match=words):
        board.build(request(kernel, tmp_path))


def test_a_sysroot_of_another_machine_is_refused(kernel: Path, tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="there is no /usr/bin/python3"):
        board.build(request(kernel, tmp_path))
    (tmp_path / "usr/bin").mkdir(parents=True)
    shutil.copy("/bin/sh", tmp_path / "usr/bin/python3")
    machine = {"x86_64": "x86_64"}.get(os.uname().machine, "another machine")
    with pytest.raises(BuildError, match=f"a kernel for aarch64, .* is a program for {machine}"):
        board.build(request(kernel, tmp_path))


def test_an_old_python_is_refused(kernel: Path, tmp_path: Path) -> None:
    (tmp_path / "usr/bin").mkdir(parents=True)
    (tmp_path / "usr/bin/python3").symlink_to("python3.9")
    with pytest.raises(BuildError, match=r"is 3\.9, kdumpd needs 3\.11 or newer"):
        board._require_version("/nonexistent", Origin(root=tmp_path))
    board._require_version(PYTHON, Origin())


def test_modules_are_found_where_builds_leave_them(kernel: Path, tmp_path: Path) -> None:
    known = board.read_kernel(kernel, None, None)
    for top in (f"a/{RELEASE}", f"b/lib/modules/{RELEASE}", f"c/usr/lib/modules/{RELEASE}", f"lib/modules/{RELEASE}"):
        (tmp_path / top).mkdir(parents=True)
        (tmp_path / top / "modules.dep").touch()
    origin = Origin(root=tmp_path)
    for named in ("a", f"a/{RELEASE}", "b", "c"):
        found = board.find_modules(tmp_path / named, known, origin)
        assert found is not None and (found / "modules.dep").exists()
    assert board.find_modules(None, known, origin) == tmp_path / f"lib/modules/{RELEASE}"
    assert board.find_modules(None, known, Origin(root=tmp_path / "a")) is None
    with pytest.raises(NotFoundError, match=f"no modules.dep of kernel {RELEASE}"):
        board.find_modules(tmp_path / "nowhere", known, origin)


def test_without_modules_the_filesystem_has_to_be_built_in(kernel: Path, tmp_path: Path) -> None:
    assert board._modules(request(kernel, tmp_path), board._index(request(kernel, tmp_path))) == ()
    with pytest.raises(BuildError, match=r"has no xfs built in \(CONFIG_XFS_FS\)"):
        board._index(request(kernel, tmp_path, capture=capture("xfs")))
    with pytest.raises(NotFoundError, match="no folder of modules to take phy_x from"):
        board._index(request(kernel, tmp_path, drivers=["phy_x"]))


def test_drivers_are_taken_as_far_as_the_kernel_has_them(kernel: Path, tmp_path: Path) -> None:
    modules = tmp_path / "m"
    modules.mkdir()
    (modules / "modules.dep").write_text(
        "kernel/usb-storage.ko: kernel/scsi_mod.ko\nkernel/scsi_mod.ko:\nkernel/sd_mod.ko: kernel/scsi_mod.ko\n"
        "kernel/nvme.ko:\nkernel/phy-x.ko:\n"
    )
    (modules / "modules.builtin").write_text("kernel/fs/ext4/ext4.ko\nkernel/xhci-pci.ko\n")
    wanted = request(kernel, tmp_path, modules=modules, disks=["usb"], drivers=["phy-x"])
    found = board._modules(wanted, board._index(wanted))
    assert found == ("kernel/phy-x.ko", "kernel/scsi_mod.ko", "kernel/usb-storage.ko", "kernel/sd_mod.ko")
    tree = DeviceTree(root=Node("", {"compatible": b"x,board\0y,phy\0"}))
    described = request(kernel, tmp_path, modules=modules, disks=["nvme"], tree=tree)
    (modules / "modules.alias").write_text("alias of:N*T*Cy,phyC* phy_y\n")
    with (modules / "modules.dep").open("a") as dep:
        dep.write("kernel/drivers/phy/y/phy-y.ko:\n")
    found = board._modules(described, board._index(described))
    assert found == ("kernel/drivers/phy/y/phy-y.ko", "kernel/nvme.ko")
    anything = request(kernel, tmp_path, modules=modules)
    assert "kernel/nvme.ko" in board._modules(anything, board._index(anything))
    missing = request(kernel, tmp_path, modules=modules, drivers=["phy-z"])
    with pytest.raises(NotFoundError, match="has no module phy-z"):
        board._modules(missing, board._index(missing))


def test_a_board_may_build_for_itself(kernel: Path, tmp_path: Path) -> None:
    """This machine is the board: its own Python, started as it is, and a kernel for its processor."""
    head = bytearray(bzimage().ljust(0x1000, b"\0"))
    struct.pack_into("<H", head, 0x20E, 0x600)
    version = f"{RELEASE} (me@here) #1".encode()
    head[0x800 : 0x800 + len(version)] = version
    data = image() if os.uname().machine == "aarch64" else bytes(head)
    kernel.write_bytes(data)
    (tmp_path / "config").write_text(CONFIG + "CONFIG_RD_GZIP=y\n")
    known = board.read_kernel(kernel, os.uname().machine, tmp_path / "config")
    made = board.build(board.BoardRequest(kernel=known, capture=capture(), origin=Origin(), modules=None))
    assert (made.compression, made.modules) == ("gzip", ())
    entries = {entry.path: entry for entry in cpio.read(gzip.decompress(made.packed))}
    assert b"LABEL=X" in entries["etc/kdumpd/capture.json"].content
    assert f'"{RELEASE}"'.encode() in entries["etc/kdumpd/image.json"].content
    assert any(path.endswith("/numpy/__init__.pyc") for path in entries)


@pytest.fixture
def folder(kernel: Path, tmp_path: Path) -> Path:
    (tmp_path / "x.dtb").write_bytes(b"tree")
    wanted = board_folder.Folder(
        kernel=kernel, release=RELEASE, tree=tmp_path / "x.dtb", image=b"packed", cmdline="a b=$(id)",
        targets=("/var/crash on LABEL=X (ext4)",),
    )  # fmt: skip
    board_folder.write(wanted, tmp_path / "out")
    board_folder.write(wanted, tmp_path / "out")  # again, over itself
    return tmp_path / "out"


def test_the_folder_is_whole_and_for_root_alone(folder: Path, kernel: Path) -> None:
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
    programs = {"kdumpd-load": 0o700, "load.sh": 0o700}
    data = dict.fromkeys(("Image", "board.dtb", "capture-initramfs", "cmdline", "README"), 0o600)
    assert modes == {**programs, **data}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert (folder / "Image").read_bytes() == kernel.read_bytes()
    assert (folder / "cmdline").read_text() == "a b=$(id)\n"
    assert "/var/crash on LABEL=X (ext4)" in (folder / "README").read_text()


def test_the_load_command_is_plain_sh_and_holds_no_settings(folder: Path) -> None:
    text = (folder / "load.sh").read_text()
    assert "$(id)" not in text
    for shell in (["sh", "-n"], ["busybox", "sh", "-n"], ["shellcheck"]):
        if shutil.which(shell[0]):
            subprocess.run([*shell, folder / "load.sh"], check=True)


def test_the_loader_needs_python_alone(folder: Path) -> None:
    shown = subprocess.run(
        [PYTHON, "-IS", folder / "kdumpd-load", "--help"], capture_output=True, text=True, check=True
    )
    assert "--dtb" in shown.stdout
    assert board_folder.loader_program() == (folder / "kdumpd-load").read_bytes()


def test_the_loader_fails_with_a_sentence(folder: Path) -> None:
    """It runs here as it would there: from load.sh, wherever that is called from. This machine is another one."""
    (folder / "capture-initramfs").unlink()
    done = subprocess.run(["sh", folder / "load.sh"], cwd="/", capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("kdumpd-load: The image capture-initramfs cannot be read: No such file")
    assert "Traceback" not in done.stderr


def test_no_room_gets_a_sentence(kernel: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    wanted = board_folder.Folder(kernel=kernel, release=RELEASE, tree=None, image=b"", cmdline="", targets=())
    with pytest.raises(BuildError, match="cannot be written: Not a directory"):
        board_folder.write(wanted, tmp_path / "file" / "out")
    words = ["sh", "-c", f"ulimit -f 1; trap '' XFSZ; exec {PYTHON} -c '{_WRITES}' '{kernel}' '{tmp_path}/out'"]
    done = subprocess.run(words, cwd=Path(__file__).parents[3], capture_output=True, text=True, check=False)
    assert "cannot be written: File too large" in done.stdout, done.stderr
    assert not list((tmp_path / "out").glob("*Image*"))


_WRITES = """
import sys
from pathlib import Path
from kdumpd.errors import BuildError
from kdumpd.image import board_folder
wanted = board_folder.Folder(kernel=Path(sys.argv[1]), release="x", tree=None, image=b"", cmdline="", targets=())
try:
    board_folder.write(wanted, Path(sys.argv[2]))
except BuildError as error:
    print(error)
"""
