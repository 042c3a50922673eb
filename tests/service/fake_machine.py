# SPDX-License-Identifier: GPL-2.0-or-later
"""A machine made of files: /proc, /sys, a kernel, one disk. And a kernel that loads by writing into that tree.

The image builder, the configuration parser, the state machine and the bus are the real ones; only the system call,
which this machine's kernel may not have, is acted by `FakeKernel`.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path

import kdumpd
from kdumpd.config.parse import read_config
from kdumpd.dumpfile.manifest import FileRecord, Manifest, Result
from kdumpd.errors import BuildError
from kdumpd.host.kernels import find_kernel
from kdumpd.host.kexec import FILE_UNLOAD, FileLoader
from kdumpd.host.kexec_pair import OpenPair
from kdumpd.host.mounts import resolve_targets
from kdumpd.image import ImageRecord, capture_config, read_record
from kdumpd.image.capture import find_init
from kdumpd.image.contents import read_source
from kdumpd.image.pyclosure import own_files
from kdumpd.image.record import IMAGE_PACKAGE
from kdumpd.image.record import FileRecord as ImageFile

RELEASE = "6.1.0-99-fake-amd64"
BOOT_ID = "11111111-2222-3333-4444-555555555555"
UUID = "0f0e0d0c-0b0a-4908-8706-050403020100"
MIB = 1 << 20
_CONFIG = "CONFIG_BLK_DEV_INITRD=y\nCONFIG_DEVTMPFS=y\nCONFIG_PROC_VMCORE=y\nCONFIG_RD_ZSTD=y\nCONFIG_EXT4_FS=y\n"


def bzimage(*, init_size: int = 52 * MIB, cmdline_size: int = 2047, magic: bytes = b"HdrS") -> bytes:
    """The first bytes of an x86 kernel, which is all that is looked at before the system call."""
    head = bytearray(0x1000)
    head[0x1FE:0x200] = b"\x55\xaa"
    head[0x202:0x206] = magic
    struct.pack_into("<H", head, 0x206, 0x20F)
    head[0x211] = 1  # LOADED_HIGH
    struct.pack_into("<H", head, 0x236, 0x7F)
    struct.pack_into("<I", head, 0x238, cmdline_size)
    struct.pack_into("<I", head, 0x260, init_size)
    return bytes(head)


class FakeMachine:
    """The tree below `root`. Each method changes what the kernel would show."""

    def __init__(self, root: Path, *, crashkernel: str | None = "256M") -> None:
        self.root = root
        self.write("proc/sys/kernel/osrelease", f"{RELEASE}\n")
        self.write("proc/sys/kernel/arch", "x86_64\n")
        self.write("proc/sys/kernel/random/boot_id", f"{BOOT_ID}\n")
        self.write("proc/sys/kernel/kexec_load_disabled", "0\n")
        self.write("proc/cpuinfo", "processor\t: 0\napicid\t\t: 0\n\nprocessor\t: 1\napicid\t\t: 1\n")
        self.write("proc/meminfo", "MemTotal:        4028416 kB\nMemFree:         3928416 kB\n")
        self.write("proc/sys/kernel/panic_on_oops", "1\n")
        self.write("sys/devices/system/cpu/present", "0-1\n")
        self.write(f"boot/vmlinuz-{RELEASE}", bzimage())
        self.write(f"boot/config-{RELEASE}", _CONFIG)
        modules = f"usr/lib/modules/{RELEASE}"
        for name in ("modules.dep", "modules.alias", "modules.softdep", "modules.builtin"):
            self.write(f"{modules}/{name}", "kernel/fs/ext4/ext4.ko\n" if name == "modules.builtin" else "")
        self.write("proc/self/mountinfo", "26 1 259:0 / / rw,relatime shared:1 - ext4 /dev/nvme0n1 rw\n")
        self._disk()
        (root / "var/crash").mkdir(parents=True)
        self.crash_loaded(False)
        self.reserve(crashkernel)

    @classmethod
    def existing(cls, root: Path) -> FakeMachine:
        """A machine that another process made."""
        machine = cls.__new__(cls)
        machine.root = root
        return machine

    def write(self, path: str, text: str | bytes) -> None:
        """Writes a file, as the kernel or a person would: nobody who reads it meanwhile finds it empty."""
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        data = text if isinstance(text, bytes) else text.encode()
        if path.startswith(("proc/", "sys/")):
            # The same inode all the time, as in the real ones: some are watched.
            with open(os.open(file, os.O_WRONLY | os.O_CREAT, 0o666), "wb", buffering=0) as out:
                out.write(data)
                out.truncate(len(data))
        elif file.exists():
            real = Path(os.path.realpath(file))
            new = self.root / f".new-{os.getpid()}-{threading.get_ident()}"
            new.write_bytes(data)
            new.chmod(stat.S_IMODE(real.stat().st_mode))
            new.replace(real)
        else:
            file.write_bytes(data)

    def reserve(self, crashkernel: str | None, size_bytes: int | None = None) -> None:
        """Boots with this crashkernel=; `size_bytes` is what the kernel made of it."""
        word = "" if crashkernel is None else f" crashkernel={crashkernel}"
        self.write("proc/cmdline", f"BOOT_IMAGE=/boot/vmlinuz root=UUID={UUID} ro console=ttyS0{word} quiet\n")
        if size_bytes is None:
            size_bytes = 0 if crashkernel is None else int(crashkernel.removesuffix("M")) * MIB
        self.write("sys/kernel/kexec_crash_size", f"{size_bytes}\n")
        lines = ["00001000-7fffffff : System RAM", "100000000-17fffffff : System RAM"]
        if size_bytes:
            lines.insert(1, f"  60000000-{0x60000000 + size_bytes - 1:08x} : Crash kernel")
        self.write("proc/iomem", "\n".join(lines) + "\n")

    def crash_loaded(self, loaded: bool | None) -> None:
        """What /sys says; None takes the file away, as on a kernel without crash kexec."""
        if loaded is None:
            (self.root / "sys/kernel/kexec_crash_loaded").unlink(missing_ok=True)
        else:
            self.write("sys/kernel/kexec_crash_loaded", f"{int(loaded)}\n")

    def plug_memory(self) -> None:
        """A DIMM more: another range of RAM."""
        iomem = self.root / "proc/iomem"
        last = int(iomem.read_text().split()[-4].partition("-")[2], 16)
        with iomem.open("a") as file:
            file.write(f"{last + 0x1001:x}-{last + 0x8001000:x} : System RAM\n")

    def config(self, text: str) -> None:
        """Replaces /etc/kdump.conf."""
        self.write("etc/kdump.conf", text)

    def crash(
        self, name: str, *, image_id: str | None = None, result: Result = Result.COMPLETE, **fields: object
    ) -> Path:
        """A crash directory as the collector leaves it: whole from the moment that the service can see it."""
        place = self.root / "var/crash" / name
        folder = self.root / "var/new-crash"
        folder.mkdir(parents=True)
        data = b"KDUMP   " + bytes(4096)
        (folder / "vmcore").write_bytes(data)
        (folder / "vmcore-dmesg.txt").write_text("[    1.0] Kernel panic - not syncing: sysrq triggered crash\n")
        values: dict[str, object] = {
            "result": result,
            "hostname": "host",
            "kernel": RELEASE,
            "panic": "Kernel panic - not syncing: sysrq triggered crash",
            "crash_time_usec": 1_700_000_000_000_000,
            "started_usec": 1_700_000_003_000_000,
            "finished_usec": 1_700_000_011_500_000,
            "kdumpd_version": "0.1.0",
            "image_id": image_id,
            "dump": FileRecord(name="vmcore", size_bytes=len(data), sha256="ab" * 32),
            **fields,
        }
        manifest = Manifest(**values)  # type: ignore[arg-type]
        (folder / "manifest.json").write_text(manifest.to_json())
        place.parent.mkdir(exist_ok=True)
        return folder.rename(place)

    def image_id(self) -> str:
        """The id in the record of the image on disk."""
        return read_record(self.root / "var/lib/kdumpd" / RELEASE).image_id

    def _disk(self) -> None:
        device = self.root / "sys/devices/pci0000:00/0000:00:04.0"
        block = device / "nvme/nvme0/nvme0n1"
        block.mkdir(parents=True)
        (block / "dev").write_text("259:0\n")
        (device / "modalias").write_text("pci:v00001B36d00000010sv00001AF4sd00001100bc01sc08i02\n")
        driver = self.root / "sys/bus/pci/drivers/nvme"
        driver.mkdir(parents=True)
        (device / "driver").symlink_to(driver)
        for place in ("sys/class/block/nvme0n1", "sys/dev/block/259:0"):
            (self.root / place).parent.mkdir(parents=True, exist_ok=True)
            (self.root / place).symlink_to(block)
        self.write("dev/nvme0n1", "")
        links = self.root / "dev/disk/by-uuid"
        links.mkdir(parents=True)
        (links / UUID).symlink_to("../../nvme0n1")


class FakeKernel:
    """Acts kexec_file_load(2) upon the tree: drops the old image first, then takes the new one or fails."""

    def __init__(self, machine: FakeMachine) -> None:
        self._machine = machine
        self.calls: list[tuple[str, int]] = []
        self.fail: list[int] = []  # errno for each of the next calls, 0 for one that works
        self.before: Callable[[OpenPair], None] | None = None  # what happens to the loader before its call
        self.new_names = False  # those of sysfs since v6.19
        self.heard: Callable[[int, int], None] = lambda flags, code: None  # of each call that touched the image

    def __call__(self, kernel_fd: int, initrd_fd: int, cmdline: str, flags: int) -> int:
        self.calls.append((cmdline, flags))
        if (self._machine.root / "proc/sys/kernel/kexec_load_disabled").read_text().strip() == "1":
            return errno.EPERM
        self._show(loaded=False)
        code = self.fail.pop(0) if self.fail else 0
        loaded = code == 0 and not flags & FILE_UNLOAD
        if loaded:
            held = {"initrd_sha256": hashlib.sha256(os.pread(initrd_fd, 1 << 24, 0)).hexdigest(), "cmdline": cmdline}
            self._machine.write("held.json", json.dumps(held))
            self._show(loaded=True)
        self.heard(flags, code)
        return code

    def _show(self, *, loaded: bool) -> None:
        if self.new_names:
            self._machine.write("sys/kernel/kexec/crash_loaded", f"{int(loaded)}\n")
        else:
            self._machine.crash_loaded(loaded)

    def held(self) -> dict[str, str] | None:
        """What this kernel would boot at a crash, whoever's process loaded it; None when it would not."""
        if (self._machine.root / "sys/kernel/kexec_crash_loaded").read_text() != "1\n":
            return None
        found: dict[str, str] = json.loads((self._machine.root / "held.json").read_text())
        return found

    def loader(self) -> FileLoader:
        """The real loader, with all its checks, in front of this kernel."""
        return _Loader(self, self._machine.root)


class _Loader(FileLoader):
    def __init__(self, kernel: FakeKernel, root: Path) -> None:
        super().__init__("x86_64", root=root, syscall=kernel)
        self._kernel = kernel

    def load(self, opened: OpenPair) -> None:
        if self._kernel.before is not None:
            self._kernel.before(opened)
        super().load(opened)


class FakeBuilder:
    """Puts an image with a true record into place, without the half minute a real build takes.

    Its record names the files of kdumpd itself, as a real one does, so that the question whether it is fresh gets
    its real answer.
    """

    def __init__(self, machine: FakeMachine) -> None:
        self._machine = machine
        self.builds = 0
        self.reading = 0  # builds that have read the configuration
        self.seconds = 0.0
        self.fail: list[str] = []  # sentences for the next builds, "" for one that works

    def build(self, release: str) -> str:
        """Writes initrd and image.json, each by a rename."""
        self.builds += 1
        sentence = self.fail.pop(0) if self.fail else ""
        if sentence:
            raise BuildError(sentence, hint="df -h /var/lib")
        root = self._machine.root
        config = read_config(root)
        kernel = find_kernel(release, root)
        capture = capture_config(config, resolve_targets(config, root), os.uname().nodename, release, root)
        self.reading += 1
        time.sleep(self.seconds)  # as a real one, it does not see what changes after it began
        data = f"image {self.builds} of {capture.to_json()}".encode() * 50
        files = [_entry(f"{IMAGE_PACKAGE}/{path.name}", path) for path in own_files()]
        record = ImageRecord(
            image_id=hashlib.sha256(data).hexdigest(),
            kdumpd_version=kdumpd.__version__,
            kernel=release,
            kernel_image=read_source(str(kernel.image))[1],
            compression="zstd",
            packed_bytes=len(data),
            packed_sha256=hashlib.sha256(data).hexdigest(),
            unpacked_bytes=47 * MIB,
            capture=capture,
            modules=(),
            notes=(),
            files=(_entry("init", find_init()), *files),
        )
        folder = root / "var/lib/kdumpd" / release
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in (("initrd", data), ("image.json", record.to_json().encode())):
            (folder / f"{name}.new").write_bytes(content)
            (folder / f"{name}.new").rename(folder / name)
        return "47.0 MB"

    def cancel(self) -> bool:
        """Nothing runs in the background here."""
        return False

    def stop(self) -> None:
        """Nothing to end."""


def _entry(name: str, path: Path) -> ImageFile:
    data, source = read_source(str(path))
    return ImageFile(path=name, mode=0o100644, size=len(data), sha256=source.sha256, source=source)
