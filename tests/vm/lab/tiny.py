# SPDX-License-Identifier: GPL-2.0-or-later
"""A tiny guest for capture tests, at a tenth of the cost of a whole Debian: crashes, captures, and is off.

    outcome = tiny.crash(
        "ext4 UUID=...\\npath /crash\\n", scratch,  # kdump.conf, and a folder for what the guest leaves
        disks=[tiny.Disk(disk)],                   # files with filesystems in them, see `ext4` below
        setup="lvm vgchange -ay",                  # sh, before the guest is looked at; `disk disk0` prints a device
        faults="echo 1 > /sys/block/vda/device/delete",  # sh, after the load and before the crash
    )
    folder = tiny.take_ext4(disk, "/crash", scratch / "crash")
    proof.complete(folder)

What happens: a Debian kernel boots a first system of busybox alone (`first/init`). It runs `setup`, then sends what
the kernel shows of its devices to the host. There `python3 -m kdumpd.image build --root` makes the capture image that
this machine would get, from a folder with these facts, on this host or in another Debian (`suite`, see `chroot`); the
guest loads it, runs `faults` and crashes. QEMU ends as the
capture kernel reboots or switches off. Nothing is recorded for later: each guest is asked itself. About 20 s on a
quiet machine. The disks are plain raw files and can be looked at afterwards; what the host has no tool for (xfs, LVM),
`read` has a second guest look at.

Network cards and the like: `words` go on QEMU's command line, `modules` are loaded by the first system and `config`
is any kdump.conf. `edit` may change the packed image before it is loaded (append an archive, say), `during` gets the
machine while it captures (QMP, console). Programs of the host that `setup` needs are named in `tools` and called by
their paths, /sbin/NAME: busybox prefers its own.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import lzma
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from . import chroot, cpio, image, stock, told, whole
from .aptroot import LabError, run
from .qemu import Machine

TOP = Path(__file__).resolve().parents[3]
FIRST = Path(__file__).parent / "first"
MEMORY_MIB = 640
CRASHKERNEL = "224M"
_RUNNING = "console=ttyS0 panic=30"
BOOT_TIMEOUT_S = 120.0
CAPTURE_TIMEOUT_S = 240.0
_EXCHANGE_MIB = 256
_FROM_GUEST = 1 << 20
_TO_GUEST = 64 << 20
_UP = r"\[kdumpd\] capture kernel is up"
# The attributes that first/init hands over.
_ATTRIBUTE = re.compile(
    r"(sys/.*?/(?:modalias|dev|size|partition|uuid|name|model|serial|level|metadata_version|array_state|raid_disks|"
    r"initstate|address|type|operstate|ifindex|uevent|removable|wwid|state|identity|mtu|mode|perm_hwaddr)):(.*)"
)
# How a disk hangs in the guest: QEMU's device, and the modules of the first system.
_BUSES = {
    "virtio": ("virtio-blk-pci,drive={0},serial={0}", ("virtio_pci", "virtio_blk")),
    "nvme": ("nvme,drive={0},serial={0}", ("nvme",)),
    "scsi": ("scsi-hd,drive={0},serial={0}", ("virtio_pci", "virtio_scsi", "sd_mod")),
    "usb": ("usb-storage,drive={0}", ("xhci_pci", "usb_storage", "sd_mod")),
}
_CONTROLLERS = {"scsi": "virtio-scsi-pci", "usb": "qemu-xhci"}


# How a first system uses lvm(8) and mdadm(8): as on a machine without udev.
LVM = """
mkdir -p /run/lvm /etc/lvm /run/lock
export LVM_SYSTEM_DIR=/run/lvm LVM_SUPPRESS_FD_WARNINGS=1 MDADM_NO_UDEV=1
echo 'activation { udev_sync=0 udev_rules=0 monitoring=0 }
devices { obtain_device_list_from_udev=0 }' >/run/lvm/lvm.conf
"""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    """A raw file as a disk of the guest. The first one has the serial number "disk0", the next "disk1"."""

    path: Path
    bus: str = "virtio"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a guest that crashed has said: `first` up to the crash, `capture` from the start of the capture kernel.

    `marker` was written to the kernel log just before the crash. `image` is the folder with image and record,
    `captured_sec` is the time from the crash to the end of QEMU, `seconds` the time of everything.
    """

    first: str
    capture: str
    marker: str
    image: Path
    captured_sec: float
    seconds: float


def ext4(path: Path, *, mib: int = 192, label: str = "dumps", options: Sequence[str] = ()) -> str:
    """Makes `path` a disk with one ext4 filesystem and returns its UUID."""
    uuid = "6b64756d-7064-4c41-8000-" + os.urandom(6).hex()
    with path.open("wb") as file:
        file.truncate(mib << 20)
    run(["mke2fs", "-q", "-F", "-t", "ext4", "-m", "0", "-L", label, "-U", uuid, *options, str(path)], timeout=60)
    return uuid


def take_ext4(disk: Path, inside: str, wanted: Path, *, offset: int = 0) -> Path:
    """Copies the one crash below the folder `inside` of an ext4 filesystem to `wanted`, with debugfs(8); its folder.

    `offset` is where in `disk` the filesystem begins, in bytes.
    """
    wanted.mkdir(parents=True)
    where = f"{disk}?offset={offset}" if offset else str(disk)
    run(["debugfs", "-R", f'rdump "{inside}" "{wanted}"', where], timeout=120)
    return only_crash(wanted / Path(inside).name)


def programs(texts: Mapping[str, str]) -> Callable[[Path], None]:
    """For `prepare` of `crash`: puts programs in sh, by their names, into /etc/kdump of the machine."""

    def prepare(root: Path) -> None:
        for name, text in texts.items():
            path = root / "etc/kdump" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"#!/bin/sh\n{text}\n")
            path.chmod(0o755)

    return prepare


def only_crash(folder: Path) -> Path:
    """The one crash folder in `folder`."""
    found = sorted(folder.iterdir()) if folder.is_dir() else []
    assert len(found) == 1, f"{folder} holds {[path.name for path in found]} instead of one crash"
    return found[0]


def complete_crash(folder: Path) -> Path:
    """The one complete crash folder in `folder`. Where an earlier target is slow to answer the log may have come before
    it, into a folder of its own."""
    results = {path: json.loads((path / "manifest.json").read_text())["result"] for path in folder.iterdir()}
    found = [path for path, result in results.items() if result == "complete"]
    assert len(found) == 1, results
    assert set(results.values()) <= {"complete", "log-only"}, results
    return found[0]


def crash(
    config: str,
    scratch: Path,
    *,
    disks: Sequence[Disk] = (),
    kernel: str = "6.1",
    setup: str = "",
    faults: str = "",
    tools: Sequence[str] = (),
    modules: Sequence[str] = (),
    words: Sequence[str] = (),
    append: str = "",
    capture: str = "",
    crashkernel: str = CRASHKERNEL,
    memory_mib: int = MEMORY_MIB,
    edit: Callable[[Path], None] | None = None,
    before: Callable[[Machine], None] | None = None,
    during: Callable[[Machine], None] | None = None,
    prepare: Callable[[Path], None] | None = None,
    suite: str | None = None,
    name: str = "tiny",
    timeout: float = CAPTURE_TIMEOUT_S,
) -> Outcome:
    """Boots, builds the image for `config`, loads it, crashes and waits until the machine is off.

    `kernel` is a name of whole.whole, `suite` the Debian that the image is built in. `append` goes on the first
    kernel's command line, `capture` on the capture kernel's, which else is the service's own (`told`). `prepare` may
    change the folder with the guest's facts before the image is built (`edit`: after); `before` gets the machine before
    it loads and crashes. Raises AssertionError with the console's last lines when the guest does not get that far,
    LabError with the builder's sentence when no image can be built. The console is kept in `scratch`/`name`.log.
    """
    started = time.monotonic()
    kernel_files = whole.whole(kernel)
    marker = f"kdumpd-marker-{os.urandom(8).hex()}"
    said = told.capture_words(f"{_RUNNING} {append}", capture)
    texts = {"setup": setup, "faults": faults, "marker": f"{marker}\n", "capture": said}
    with tempfile.TemporaryDirectory(prefix="kdumpd-tiny-", dir=scratch) as folder:
        there = Path(folder)
        with _machine(
            there, kernel_files, scratch / f"{name}.log", disks, texts, tools, modules, words,
            f"crashkernel={crashkernel} {append}", memory_mib,
        ) as guest:  # fmt: skip
            facts = _given(guest, there)
            root = there / "root"
            machine_root(facts, root, kernel_files)
            if prepare is not None:
                prepare(root)
            built = build_image(config, root, kernel_files, scratch / f"{name}-image", suite)
            if edit is not None:
                edit(built / "initrd")
            if before is not None:
                before(guest)
            _answer(there, (built / "initrd").read_bytes())
            at = guest.console.wait_for("^tiny: (?:crashes|FAILED.*)", BOOT_TIMEOUT_S)
            if at[0] != "tiny: crashes":
                raise LabError(f"{name}: {at[0]}\n{guest.console.text[-3000:]}")
            crashed = time.monotonic()
            if during is not None:
                guest.console.wait_for(_UP, timeout)
                during(guest)
            guest.wait_ended(timeout)
            ended = time.monotonic()
            text = guest.console.text
    first, _, later = text.partition("tiny: crashes")
    return Outcome(
        first=first,
        capture=later,
        marker=marker,
        image=built,
        captured_sec=ended - crashed,
        seconds=ended - started,
    )


def read(
    script: str,
    scratch: Path,
    wanted: Path,
    *,
    disks: Sequence[Disk],
    kernel: str = "6.1",
    setup: str = "",
    tools: Sequence[str] = (),
    modules: Sequence[str] = (),
    name: str = "read",
) -> None:
    """Has a guest look at disks: what `script` (sh) copies to /run/read becomes the folder `wanted`."""
    texts = {"setup": setup, "read": f"mkdir -p /run/read\n{script}\n"}
    with tempfile.TemporaryDirectory(prefix="kdumpd-tiny-", dir=scratch) as folder:
        there = Path(folder)
        with _machine(
            there, whole.whole(kernel), scratch / f"{name}.log", disks, texts, tools, modules, (), "", MEMORY_MIB
        ) as guest:
            data = _given(guest, there)
            guest.wait_ended(60)
    _unpack(data, wanted)


class Serving:
    """A guest that does what it is told until it is told to end."""

    def __init__(self, machine: Machine, there: Path) -> None:
        self.machine = machine
        self._there = there
        self._count = 0

    def order(self, command: str) -> None:
        """Has the guest run one line of sh, and waits until it has."""
        self._count += 1
        _answer(self._there, b"", f"do {self._count} {command}")
        at = self.machine.console.wait_for(rf"^tiny: (?:done {self._count}\n|FAILED.*)", BOOT_TIMEOUT_S)
        if "FAILED" in at[0]:
            raise LabError(f"{command}: {at[0]}\n{self.machine.console.text[-3000:]}")


@contextlib.contextmanager
def serving(
    script: str,
    scratch: Path,
    *,
    disks: Sequence[Disk],
    kernel: str = "6.1",
    setup: str = "",
    tools: Sequence[str] = (),
    modules: Sequence[str] = (),
    words: Sequence[str] = (),
    name: str = "serves",
) -> Iterator[Serving]:
    """A guest beside those that crash: `setup` (sh) makes it ready, then it runs what `Serving.order` is given, in a
    shell that has read `script`. At the end of the block it is switched off."""
    texts = {"setup": setup, "serve": script}
    with tempfile.TemporaryDirectory(prefix="kdumpd-tiny-", dir=scratch) as folder:
        there = Path(folder)
        with _machine(
            there, whole.whole(kernel), scratch / f"{name}.log", disks, texts, tools, modules, words, "", MEMORY_MIB
        ) as guest:
            found = Serving(guest, there)
            found.order(":")
            yield found
            _answer(there, b"", "end")
            guest.wait_ended(60)


def _unpack(data: bytes, folder: Path) -> None:
    """A tar file, with its modes."""
    folder.mkdir(parents=True)
    archive = folder.with_name(folder.name + ".tar")
    archive.write_bytes(data)
    run(["tar", "-x", "-p", "-f", str(archive), "-C", str(folder)], timeout=120)
    archive.unlink()


def machine_root(facts: bytes, root: Path, kernel_files: whole.WholeKernel) -> None:
    """A folder that stands in for the guest's root: sysfs and /proc as it showed them, links in /dev, the kernel."""
    root.mkdir()
    _unpack(facts, root / "facts")
    for line in (root / "facts/folders").read_text().splitlines():
        (root / line).mkdir(parents=True, exist_ok=True)
    for line in (root / "facts/links").read_text().splitlines():
        # As ls(1) shows it: mode, links, user, group, size, month, day, time, name -> what it leads to.
        path, _, target = line.split(maxsplit=8)[8].partition(" -> ")
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).symlink_to(target)
    texts: dict[str, str] = {}
    for line in (root / "facts/attributes").read_text(errors="surrogateescape").splitlines():
        # grep(1) puts a colon behind the path, and PCI addresses have some too.
        if found := _ATTRIBUTE.match(line):
            texts[found[1]] = texts.get(found[1], "") + found[2] + "\n"
    for path, text in texts.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text, errors="surrogateescape")
    (root / "facts/proc").rename(root / "proc")
    _device_links(root)
    # The build sees the kernel where a machine has it.
    (root / "boot").symlink_to("/boot")
    if not (kernel_files.root / f"boot/vmlinuz-{kernel_files.release}").exists():
        (root / "usr").symlink_to("/usr")
    (root / "lib").mkdir()
    (root / "lib/modules").symlink_to("/usr/lib/modules")


def _device_links(root: Path) -> None:
    """What udev would have made of the filesystems that blkid found, and of the names of the device mapper."""
    (root / "dev").mkdir(exist_ok=True)
    for line in (root / "facts/blkid").read_text().splitlines():
        device, _, rest = line.partition(": ")
        number = device.removeprefix("/dev/mapper/")
        block = _mapped(root).get(number, Path(device).name) if number != device else Path(device).name
        for word in rest.split('" '):
            tag, _, value = word.partition('="')
            if tag in ("UUID", "LABEL"):
                folder = root / "dev/disk" / f"by-{tag.lower()}"
                folder.mkdir(parents=True, exist_ok=True)
                link = folder / value.strip('"')
                if not link.is_symlink():
                    link.symlink_to(f"../../{block}")
    for name, block in _mapped(root).items():
        (root / "dev/mapper").mkdir(exist_ok=True)
        (root / "dev/mapper" / name).symlink_to(f"../{block}")


def _mapped(root: Path) -> dict[str, str]:
    paths = (root / "sys/devices/virtual/block").glob("dm-*/dm/name")
    return {path.read_text().strip(): path.parents[1].name for path in paths}


def build_image(
    config: str, root: Path, kernel_files: whole.WholeKernel, output: Path, suite: str | None = None
) -> Path:
    """The capture image for the machine below `root`, built by this checkout with files and tools of this host, or
    with those of another Debian; its folder.

    Raises LabError with what the builder says.
    """
    (root / "etc").mkdir(exist_ok=True)
    (root / "etc/kdump.conf").write_text(config)
    with stock.place(output) if suite is None else contextlib.nullcontext(output) as folder:
        done = subprocess.run(
            chroot.build_words(suite, kernel_files.root, root, folder, kernel_files.release),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=180,
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"},
        )
        if done.returncode != 0:
            raise LabError(f"no image: {done.stderr}")
        json.loads(done.stdout)
    return output


def _machine(
    there: Path,
    kernel_files: whole.WholeKernel,
    log: Path,
    disks: Sequence[Disk],
    texts: dict[str, str],
    tools: Sequence[str],
    modules: Sequence[str],
    words: Sequence[str],
    append: str,
    memory_mib: int,
) -> Machine:
    exchange = there / "exchange"
    with exchange.open("wb") as file:
        file.truncate(_EXCHANGE_MIB << 20)
    wanted = [*_BUSES["virtio"][1], *(name for disk in disks for name in _BUSES[disk.bus][1]), *modules]
    files = whole.load_order(kernel_files.modules, wanted)
    initramfs = there / "first.cpio"
    initramfs.write_bytes(_first_system(there, kernel_files, texts, tools, files))
    argv = [word for bus, device in _CONTROLLERS.items() if any(disk.bus == bus for disk in disks)
            for word in ("-device", device)]  # fmt: skip
    for name, disk in {"exchange": Disk(path=exchange), **{f"disk{n}": disk for n, disk in enumerate(disks)}}.items():
        argv += ["-drive", f"file={disk.path},format=raw,if=none,id={name},cache=unsafe"]
        argv += ["-device", _BUSES[disk.bus][0].format(name) + f",id=dev-{name}"]
    return Machine(
        kernel=kernel_files.image,
        initrd=initramfs,
        disks=[],
        append=f"{_RUNNING} {append}",
        memory_mib=memory_mib,
        cpus=1,
        log=log,
        words=[*argv, *words],
        restarts=False,
    )


def _first_system(
    there: Path, kernel_files: whole.WholeKernel, texts: dict[str, str], tools: Sequence[str], modules: Sequence[Path]
) -> bytes:
    own = there / "own"
    own.mkdir()
    files: dict[str, Path] = {"bin/busybox": Path("/bin/busybox"), "init": FIRST / "init"}
    if not texts.keys() & {"read", "serve"}:
        root = image.base().root
        files["tiny/vmlinuz"] = kernel_files.image
        files |= _started(root / "opt/lab/kexec", "kexec", root, own)
    for tool in ("/usr/sbin/blkid", *tools):
        files |= _started(Path(tool), "tools", Path("/"), own)
        (own / f"bin-{Path(tool).name}").write_text(f'#!/bin/sh\nexec /tools/start /tools/{Path(tool).name} "$@"\n')
        files[f"sbin/{Path(tool).name}"] = own / f"bin-{Path(tool).name}"
    places = []
    for number, path in enumerate(modules):
        data = path.read_bytes()
        plain = own / f"{number:02}-{path.name.removesuffix('.xz')}"
        plain.write_bytes(lzma.decompress(data) if path.name.endswith(".xz") else data)
        files[f"tiny/{plain.name}"] = plain
        places.append(f"/tiny/{plain.name}\n")
    for name, text in {**texts, "modules": "".join(places)}.items():
        (own / name).write_text(text)
        files[f"tiny/{name}"] = own / name
    folders = ["bin", "sbin", "usr", "usr/bin", "usr/sbin", "dev", "proc", "sys", "run", "tmp", "mnt", "etc"]
    return cpio.archive(folders=[*folders, "tiny", "kexec", "tools"], files=files)


def _started(program: Path, folder: str, root: Path, own: Path) -> dict[str, Path]:
    """A program and its libraries (ld.so(8), --list) for a folder of its own, with /FOLDER/start to start it."""
    libraries = root / "lib/x86_64-linux-gnu"
    loader = libraries / "ld-linux-x86-64.so.2"
    listed = run([str(loader), "--library-path", str(libraries), "--list", str(program)], timeout=30)
    found = [Path(line.split(" => ")[1].split(" (")[0]) for line in listed.splitlines() if " => " in line]
    start = own / f"start-{folder}"
    start.write_text(f'#!/bin/sh\nexec /{folder}/{loader.name} --library-path /{folder} "$@"\n')
    return {f"{folder}/{path.name}": path for path in (program, loader, *found)} | {f"{folder}/start": start}


def _given(guest: Machine, there: Path) -> bytes:
    """What the guest hands over."""
    said = guest.console.wait_for(r"^tiny: (?:given (\d+)\n|FAILED.*)", BOOT_TIMEOUT_S)
    if said[1] is None:
        raise LabError(f"{said[0]}\n{guest.console.text[-3000:]}")
    with (there / "exchange").open("rb") as file:
        file.seek(_FROM_GUEST)
        return file.read(int(said[1]))


def _answer(there: Path, data: bytes, line: str | None = None) -> None:
    """Gives the guest `data` and a line; "load SIZE" if that is None."""
    with (there / "exchange").open("r+b") as file:
        file.seek(_TO_GUEST)
        file.write(data)
        file.flush()
        # Only now may the guest see that there is something.
        file.seek(0)
        file.write((line or f"load {len(data)}").encode().ljust(4096, b"\0"))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as _folder:
        _scratch = Path(_folder)
        _uuid = ext4(_scratch / "disk.raw")
        _outcome = crash(f"ext4 UUID={_uuid}\npath /crash\n", _scratch, disks=[Disk(path=_scratch / "disk.raw")])
        sys.stdout.write(_outcome.capture)
        _crash = take_ext4(_scratch / "disk.raw", "/crash", _scratch / "crash")
        sys.stdout.write(f"{sorted(os.listdir(_crash))} in {_outcome.captured_sec:.1f} of {_outcome.seconds:.1f} s\n")
        shutil.rmtree(_crash)
