# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest that only exists to crash: any Debian kernel on a root disk of busybox, Python and kexec.

A tenth of the cost of a whole Debian: no systemd, no package configured, nothing of the guest's architecture run
on the host. Everything the guest does is in `crashing/`; what it has to know comes on its command line.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from . import cpio, image
from .aptroot import KEEPS_OLD_LISTS, AptRoot, LabError, run
from .kernels import Kernel, Unpacked
from .qemu import MACHINES, Machine

SUITE = "trixie"
PACKAGES = ("python3", "busybox-static", "kexec-tools")
CRASHING = Path(__file__).parent / "crashing"
CAPTURE = "nr_cpus=1 reset_devices panic=5"
CRASHKERNEL = {"amd64": "192M", "arm64": "256M"}
# kexec_file_load(2) where the kernel has it: Debian's arm64 kernels do not.
KEXEC = {"amd64": "-s", "arm64": "-c"}
# A cpu without FEAT_LPA2 has virtual addresses of 48 bits, whatever the kernel could do.
CPU = {("arm64", 4): "cortex-a57", ("arm64", 5): "max,pauth-impdef=on"}
BALLOON_MIB = 16
READY_TIMEOUT_S = 300
CAPTURE_TIMEOUT_S = 300
_LINKS = ("bin", "sbin", "lib", "lib64")
_APPLETS = ("sh", "cat", "grep", "mkdir", "mount", "poweroff", "sed", "sleep", "sync", "tr")


def recipe(kernel: Kernel) -> list[str]:
    """All that decides what the guest's memory looks like, but for the kernel itself."""
    versions = AptRoot(SUITE, kernel.architecture).versions(PACKAGES)
    files = [*sorted(CRASHING.iterdir()), image.INSIDE / "workload.py", Path(__file__)]
    return [str(sorted(versions.items())), *(path.read_text() for path in files)]


def crash(kernel: Kernel, found: Unpacked, core: Path, log: Path, *, marker: str, levels: int, memory_mib: int) -> int:
    """Boots the kernel, lets it crash, has `core` (a raw file) filled with /proc/vmcore; the workload's pid.

    `levels` is how many levels of page tables the machine offers; a kernel that has fewer uses fewer.
    """
    architecture = kernel.architecture
    console = f"console={MACHINES[architecture][2]}"
    append = (
        f"{console} crashkernel={CRASHKERNEL[architecture]} panic=30 lab.marker={marker} "
        f"lab.kexec={KEXEC[architecture]} lab.capture={console},{CAPTURE.replace(' ', ',')}"
    )
    if architecture == "amd64" and levels == 4:
        append += " no5lvl"
    with tempfile.TemporaryDirectory(dir=core.parent) as scratch:
        disk, initramfs = _disk(kernel, found, Path(scratch))
        with Machine(
            kernel=found.image,
            initrd=initramfs,
            disks=[(disk, "raw"), (core, "raw")],
            append=append,
            memory_mib=memory_mib,
            log=log,
            architecture=architecture,
            cpu=CPU.get((architecture, levels), "max"),
            devices=["virtio-balloon-pci"],
        ) as guest:
            ready = guest.console.wait_for(r"^crash guest: (?:workload (\d+)\n|FAILED.*)", READY_TIMEOUT_S)
            if ready[1] is None:
                raise LabError(f"{log}: {ready[0]}")
            guest.qmp("balloon", value=(memory_mib - BALLOON_MIB) << 20)
            guest.console.wait_for("^raw capture: complete", CAPTURE_TIMEOUT_S)
            guest.wait_ended(60)
    return int(ready[1])


def _disk(kernel: Kernel, found: Unpacked, scratch: Path) -> tuple[Path, Path]:
    """The root disk and the initramfs that finds it."""
    root = scratch / "root"
    apt = AptRoot(SUITE, kernel.architecture)
    run(
        [
            "mmdebstrap", "--quiet", "--mode=root", "--variant=extract", f"--aptopt={KEEPS_OLD_LISTS}",
            f"--architectures={kernel.architecture}", f"--include={','.join(PACKAGES)}",
            SUITE, str(root), apt.sources[0],
        ],
        timeout=600,
    )  # fmt: skip
    for name in _LINKS:
        if not (root / name).exists():
            (root / "usr" / name).mkdir(exist_ok=True)
            (root / name).symlink_to(f"usr/{name}")
    for name in _APPLETS:
        (root / "usr/bin" / name).unlink(missing_ok=True)
        (root / "usr/bin" / name).symlink_to("busybox")
    for name in ("boot", "opt/lab", "proc", "sys", "run"):
        (root / name).mkdir(parents=True, exist_ok=True)
    busybox = root / "usr/bin/busybox"
    initramfs = scratch / "initramfs.cpio"
    modules = {f"modules/{number:02}-{path.name}": path for number, path in enumerate(found.modules)}
    initramfs.write_bytes(
        cpio.archive(
            folders=["bin", "dev", "proc", "sys", "root", "modules"],
            files={"bin/busybox": busybox, "init": CRASHING / "init", **modules},
        )
    )
    for path in (*CRASHING.iterdir(), image.INSIDE / "workload.py", initramfs):
        shutil.copy(path, root / "opt/lab")
    (root / "opt/lab/crash").chmod(0o755)
    shutil.copy(found.image, root / "boot/vmlinuz")
    disk = scratch / "disk.raw"
    image.make_disk(root, disk)
    shutil.rmtree(root)
    return disk, initramfs
