# SPDX-License-Identifier: GPL-2.0-or-later
"""A board: arm64, a kernel and a device tree of its own, no systemd, a USB port.

Its root filesystem is Debian's packages unpacked and nothing configured, with busybox as its tools: what a board's
maker calls a sysroot.
"""

from __future__ import annotations

import dataclasses
import inspect
import shutil
from collections.abc import Callable
from pathlib import Path

from . import cpio, image
from .aptroot import CACHE, KEEPS_OLD_LISTS, AptRoot, LabError, run
from .cached import digest, made_once
from .kernels import load_order
from .qemu import MACHINES, Machine

ARCHITECTURE = "arm64"
SUITE = "trixie"
PACKAGES = ("python3", "python3-numpy", "python3-zstandard", "busybox-static")
ON_BOARD = Path(__file__).parent / "on_board"
CPU = "cortex-a57"
LARGE_PAGES = "linux-image-arm64-16k"
MEMORY_MIB = 1024
USB_LABEL = "CRASHES"
_CONSOLE = MACHINES[ARCHITECTURE][2]
_LINKS = ("bin", "sbin", "lib")
_APPLETS = ("sh", "cat", "dirname", "echo", "poweroff", "sleep", "sync", "touch")
_FIRST = ("nvme", "ext4")  # what finds the root disk
_USB = ("xhci_pci", "usb_storage", "uas", "sd_mod")
_USB_DISK = ("if=none,id=stick,format=raw,cache=unsafe", "usb-storage,bus=usb.0,drive=stick")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """A board's kernel: its Image, the folder of its modules with depmod's files, its configuration; a cpu for it."""

    release: str
    image: Path
    modules: Path
    config: Path
    suite: str
    cpu: str


def sysroot() -> Path:
    """The files of the board's distribution. Not to be changed: it is kept for the next run."""
    apt = AptRoot(SUITE, ARCHITECTURE)
    versions = str(sorted(apt.versions(PACKAGES).items()))

    def make(scratch: Path) -> None:
        run(
            [
                "mmdebstrap", "--quiet", "--mode=root", "--variant=extract", f"--aptopt={KEEPS_OLD_LISTS}",
                f"--architectures={ARCHITECTURE}", f"--include={','.join(PACKAGES)}",
                SUITE, str(scratch), apt.sources[0],
            ],
            timeout=600,
        )  # fmt: skip
        for name in _LINKS:
            if not (scratch / name).exists():
                (scratch / "usr" / name).mkdir(exist_ok=True)
                (scratch / name).symlink_to(f"usr/{name}")
        for name in _APPLETS:
            (scratch / "usr/bin" / name).unlink(missing_ok=True)
            (scratch / "usr/bin" / name).symlink_to("busybox")
        shutil.rmtree(scratch / "dev")  # the nodes in it are no files to copy
        for name in ("dev", "proc", "run", "sys"):
            (scratch / name).mkdir(exist_ok=True)

    return _kept("sysroot", versions, make)


def kernel(suite: str = SUITE, newest: str = "linux-image-arm64") -> Kernel:
    """Debian's kernel for all kinds of arm64 machines (its cloud kernel has no USB), with the modules a board needs."""
    apt = AptRoot(suite, ARCHITECTURE)
    (package,) = (name for name in apt.needs(newest, "linux-image-") if name[12].isdigit())
    release = package.removeprefix("linux-image-")

    def make(scratch: Path) -> None:
        run(["dpkg-deb", "-x", str(apt.download(package, scratch)), str(scratch / "all")], timeout=300)
        root = scratch / "all"
        if not (root / "lib").exists():
            (root / "lib").symlink_to("usr/lib")
        run(["depmod", "-b", str(root), release], timeout=120)
        old, new = root / "lib/modules" / release, scratch / "lib/modules" / release
        for path in load_order((old / "modules.dep").read_text(), (*_FIRST, *_USB, "crc32c_generic")):
            (new / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(old / path, new / path)
        for path in old.glob("modules.*"):
            shutil.copy(path, new)
        run(["depmod", "-b", str(scratch), release], timeout=120)
        for name in ("vmlinuz", "config"):
            shutil.copy(root / f"boot/{name}-{release}", scratch / name)
        shutil.rmtree(root)
        for path in scratch.glob("*.deb"):
            path.unlink()

    folder = _kept(f"kernel-{release}", release, make)
    return Kernel(
        release=release, image=folder / "vmlinuz", modules=folder / "lib/modules" / release,
        config=folder / "config", suite=suite, cpu="max,pauth-impdef=on" if newest == LARGE_PAGES else CPU,
    )  # fmt: skip


def _kept(name: str, facts: str, make: Callable[[Path], None]) -> Path:
    """The folder of that name in the cache, made once for these facts and this recipe."""
    recipe = f"{facts} {inspect.getsource(make)} {_LINKS} {_APPLETS} {_FIRST} {_USB}"
    return made_once(CACHE / "board", name, digest(recipe), make)


def device_tree(path: Path) -> Path:
    """The board's device tree, as QEMU makes it for this machine."""
    program, machine, _ = MACHINES[ARCHITECTURE]
    argv = [program, "-machine", f"{machine},dumpdtb={path}", "-cpu", CPU, "-m", f"{MEMORY_MIB}M", "-smp", "2"]
    run([*argv, "-nodefaults", "-display", "none"], timeout=60)
    if not path.exists():
        raise LabError("QEMU wrote no device tree")
    return path


def usb_disk(path: Path) -> Path:
    """An empty filesystem with a label, for a stick."""
    with path.open("wb") as file:
        file.truncate(512 << 20)
    run(
        ["mke2fs", "-q", "-F", "-t", "ext4", "-L", USB_LABEL, "-E", "lazy_itable_init=0,nodiscard", str(path)],
        timeout=60,
    )
    return path


def root_disk(folder: Path, out: Path, marker: str) -> Path:
    """The board's root disk: its sysroot, what was built for it in /opt/board/out, and what it does when it boots."""
    root = folder / "root"
    shutil.copytree(sysroot(), root, symlinks=True)
    place = root / "opt/board"
    place.mkdir(parents=True)
    shutil.copytree(out, place / "out")
    (place / "marker").write_text(f"{marker}\n")
    shutil.copy(ON_BOARD / "start", place / "start")
    (place / "start").chmod(0o755)
    disk = folder / "root.raw"
    image.make_disk(root, disk)
    shutil.rmtree(root)
    return disk


def machine(used: Kernel, disk: Path, stick: Path, folder: Path) -> Machine:
    """The board, switched on."""
    initramfs = folder / "first.cpio"
    order = load_order((used.modules / "modules.dep").read_text(), ("crc32c_generic", *_FIRST))
    files = {}
    for number, path in enumerate(order):
        plain = folder / f"{number:02}.ko"
        run(["sh", "-ec", 'xz -dc "$1" >"$2" || cp "$1" "$2"', "sh", str(used.modules / path), str(plain)], timeout=60)
        files[f"modules/{plain.name}"] = plain
    busybox = sysroot() / "usr/bin/busybox"
    initramfs.write_bytes(
        cpio.archive(
            folders=["bin", "dev", "proc", "sys", "root", "modules"],
            files={"bin/busybox": busybox, "init": ON_BOARD / "init", **files},
        )
    )
    drive, device = _USB_DISK
    return Machine(
        kernel=used.image,
        initrd=initramfs,
        disks=[(disk, "raw")],
        append=f"console={_CONSOLE} crashkernel=256M panic=30",
        memory_mib=MEMORY_MIB,
        log=folder / "board.log",
        architecture=ARCHITECTURE,
        cpu=used.cpu,
        devices=["qemu-xhci,id=usb", device],
        words=["-drive", f"{drive},file={stick}"],
    )
