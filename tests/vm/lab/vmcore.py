# SPDX-License-Identifier: GPL-2.0-or-later
"""Real crashed memory on demand: raw ELF vmcores of Debian kernels, with the kernel's debug symbols.

The recipes share nothing with kdumpd: kexec-tools loads, a busybox initramfs copies /proc/vmcore with dd
to a second disk. Debian 12's kernels crash as a whole Debian, the others as guests made only for that. Files are
made once and kept in the cache; run this module to make them all:
`/usr/bin/python3 -m lab.vmcore` from tests/vm.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import fcntl
import functools
import inspect
import json
import os
import struct
import sys
import tempfile
import time
from pathlib import Path

from . import image, small
from .aptroot import CACHE, AptRoot, LabError, run
from .cached import digest, made_once
from .kernels import KERNELS, Unpacked, unpacked
from .qemu import Machine, overlay

MEMORY_MIB = 1024
# Kernel and levels of page tables: what tests/dump works on.
CORES = (
    ("6.1", 5), ("6.1", 4), ("6.12", 5), ("5.10", 4), ("7", 5), ("6.12-rt", 5), ("6.12-arm64", 5), ("6.12-arm64", 4),
    ("6.12-arm64-16k", 5),
)  # fmt: skip
_CAPTURE = "console=ttyS0 nr_cpus=1 reset_devices panic=5"
_EHDR = struct.Struct("<16sHHIQQQIHHHHHH")
_PHDR = struct.Struct("<IIQQQQQQ")
_PT_LOAD = 1


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Vmcore:
    """A raw ELF vmcore as /proc/vmcore gave it, and what is known of the machine it came from.

    `kernel` is the name that `raw_vmcore` takes.
    `marker` is a random line written to the kernel log just before the crash; `workload_pid` a process
    (comm "workload") that held anonymous, hugetlb and tmpfs pages; `levels` of page tables 4 or 5; `suite` and
    `architecture` where Debian has the kernel's debug symbols.
    """

    path: Path
    kernel: str
    release: str
    marker: str
    workload_pid: int
    levels: int
    memory_mib: int
    suite: str = image.SUITE
    architecture: str = "amd64"

    @property
    def vmlinux(self) -> Path:
        """The kernel with its debug information."""
        return debug_symbols(self.release, suite=self.suite, architecture=self.architecture)


def raw_vmcore(kernel: str, *, levels: int = 5, memory_mib: int | None = None) -> Vmcore:
    """The vmcore of a crashed guest: a kernel of Debian 12 by its series ("6.1", "6.12"), or one of KERNELS."""
    if kernel in KERNELS:
        memory_mib = memory_mib or KERNELS[kernel].memory_mib
        found = unpacked(KERNELS[kernel])
        parts = [found.release, *small.recipe(KERNELS[kernel]), inspect.getsource(_make_small)]
        make = functools.partial(_make_small, kernel=kernel, found=found, levels=levels, memory_mib=memory_mib)
    else:
        memory_mib = memory_mib or MEMORY_MIB
        base = image.base()
        parts = [base.release(kernel), str(levels), str(memory_mib), _CAPTURE]
        parts += [inspect.getsource(part) for part in (_make, _load_up)]
        parts += [(image.INSIDE / name).read_text() for name in ("capture-init", "workload.py")]
        make = functools.partial(_make, base=base, kernel=kernel, levels=levels, memory_mib=memory_mib)

    def make_with_facts(scratch: Path) -> None:
        (scratch / "vmcore.json").write_text(json.dumps(make(scratch), indent=1) + "\n")

    name = f"{kernel}-{levels}level-{memory_mib}"
    folder = made_once(CACHE / "vmcore", name, digest("\0".join(parts)), make_with_facts)
    facts = json.loads((folder / "vmcore.json").read_text())
    return Vmcore(path=folder / "vmcore", kernel=kernel, **facts)


def debug_symbols(release: str, *, suite: str = image.SUITE, architecture: str = "amd64") -> Path:
    """vmlinux with debug information for exactly that kernel release (a download of about 280 MB, once)."""
    folder = CACHE / "symbols"
    folder.mkdir(parents=True, exist_ok=True)
    wanted = folder / f"vmlinux-{release}"
    with (folder / f"{release}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not wanted.exists():
            with tempfile.TemporaryDirectory(dir=folder) as scratch:
                package = AptRoot(suite, architecture).download(f"linux-image-{release}-dbg", Path(scratch))
                wildcard = "./usr/lib/debug/*vmlinux*"
                script = 'dpkg-deb --fsys-tarfile "$1" | tar -x -C "$2" --wildcards "$3"'
                run(["sh", "-ec", script, "sh", str(package), scratch, wildcard], timeout=600)
                found = max(Path(scratch).rglob("vmlinux*"), key=lambda path: path.lstat().st_size)
                found.rename(wanted)
    return wanted


def _make(folder: Path, base: image.Image, kernel: str, levels: int, memory_mib: int) -> dict[str, object]:
    disk = overlay(base.disk, folder / "root.qcow2")
    core = folder / "vmcore"
    with core.open("wb") as file:
        file.truncate((memory_mib + 64) << 20)
    release = base.release(kernel)
    marker = f"kdumpd-marker-{os.urandom(8).hex()}"
    append = f"root=UUID={image.ROOT_UUID} ro console=ttyS0 crashkernel=192M"
    if levels == 4:
        append += " no5lvl"
    with Machine(
        kernel=base.kernel(kernel),
        initrd=base.initrd(kernel),
        disks=[(disk, "qcow2"), (core, "raw")],
        append=append,
        memory_mib=memory_mib,
        log=folder / "console.log",
    ) as guest:
        guest.wait_ready()
        pid = _load_up(guest, release)
        guest.run(["/bin/sh", "-c", f"echo {marker} > /dev/kmsg"]).ok()
        guest.crash()
        guest.console.wait_for("^raw capture: complete", 300)
        guest.wait_ended(60)
    disk.unlink()
    os.truncate(core, elf_end(core))
    return {
        "release": release, "marker": marker, "workload_pid": pid, "levels": levels, "memory_mib": memory_mib
    }  # fmt: skip


def _make_small(folder: Path, kernel: str, found: Unpacked, levels: int, memory_mib: int) -> dict[str, object]:
    core = folder / "vmcore"
    with core.open("wb") as file:
        file.truncate((memory_mib + 64) << 20)
    spec = KERNELS[kernel]
    marker = f"kdumpd-marker-{os.urandom(8).hex()}"
    log = folder / "console.log"
    pid = small.crash(spec, found, core, log, marker=marker, levels=levels, memory_mib=memory_mib)
    os.truncate(core, elf_end(core))
    return {
        "release": found.release, "marker": marker, "workload_pid": pid, "levels": levels, "memory_mib": memory_mib,
        "suite": spec.suite, "architecture": spec.architecture,
    }  # fmt: skip


def _load_up(guest: Machine, release: str) -> int:
    """Fills the guest's memory, loads the capture kernel; the workload's pid."""
    ready = "/run/workload.pid"
    guest.run(["systemd-run", "--quiet", "/usr/bin/python3", "/opt/lab/workload.py", ready]).ok()
    deadline = time.monotonic() + 120
    while (found := guest.run(["cat", ready])).rc != 0:
        if time.monotonic() > deadline:
            raise LabError(f"the workload did not start: {guest.run(['journalctl', '-b', '-n', '40']).out}")
        time.sleep(0.5)
    guest.run(
        [
            "/opt/lab/kexec", "-p", "-s", f"/boot/vmlinuz-{release}", "--initrd=/opt/lab/capture.cpio",
            f"--command-line={_CAPTURE}",
        ],
        timeout=120,
    ).ok()  # fmt: skip
    if guest.run(["cat", "/sys/kernel/kexec_crash_loaded"]).ok().strip() != "1":
        raise LabError("kexec-tools loaded nothing")
    return int(found.out)


def elf_end(core: Path) -> int:
    """Where the ELF file ends, from its program headers (elf(5)); the disk it lies on is larger."""
    with core.open("rb") as file:
        head = _EHDR.unpack(file.read(_EHDR.size))
        if not head[0].startswith(b"\x7fELF"):
            raise LabError(f"{core}: no ELF file arrived")
        file.seek(head[5])
        table = [_PHDR.unpack(file.read(_PHDR.size)) for _ in range(head[10])]
    if not any(kind == _PT_LOAD for kind, *_ in table):
        raise LabError(f"{core}: the ELF file has no memory in it")
    return max(offset + size for _, _, offset, _, _, size, _, _ in table)


def main() -> None:
    """Makes the vmcores and symbols that tests/dump works on."""
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        for core in pool.map(lambda one: raw_vmcore(one[0], levels=one[1]), CORES):
            sys.stdout.write(f"{core.path}\n{core.vmlinux}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
