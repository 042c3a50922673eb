# SPDX-License-Identifier: GPL-2.0-or-later
"""The crashed memory that the benchmark works on: guests of any size, made once and kept in the cache.

A guest's memory is a sparse file, so that 64 GiB cost what is touched of them. It is read from outside while the
guest stands still in its capture kernel (tests/vm/lab/reference.py).
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

from lab import image, reference, vmcore
from lab.aptroot import CACHE
from lab.qemu import Machine, overlay

KERNEL = "6.1"
# Caches: all of /usr and what apt keeps. User data: a program with some hundred thousand small objects.
_FILL = "find /usr /var -xdev -type f -print0 | xargs -0 cat >/dev/null 2>&1; echo filled"
_USER = (
    "import pathlib,time; "
    "kept=[{'id': i, 'name': f'user-{i}', 'mail': f'user-{i}@example.org', 'seen': i * 37 % 1000} "
    "for i in range(600_000)]; "
    "pathlib.Path('/run/user.ready').touch(); time.sleep(10**6)"
)


def guest_vmcore(memory_mib: int) -> Path:
    """The vmcore of a guest with that much memory, a part of it filled with caches and user data."""
    folder = CACHE / "bench"
    folder.mkdir(parents=True, exist_ok=True)
    wanted = folder / f"{KERNEL}-{memory_mib}.vmcore"
    if not wanted.exists():
        scratch = Path(tempfile.mkdtemp(prefix="new-", dir=folder))
        try:
            _make(scratch, memory_mib)
            (scratch / "vmcore").rename(wanted)
        finally:
            shutil.rmtree(scratch)
    return wanted


def _make(folder: Path, memory_mib: int) -> None:
    base = image.base()
    memory = folder / "memory"
    with Machine(
        kernel=base.kernel(KERNEL),
        initrd=base.initrd(KERNEL),
        disks=[(overlay(base.disk, folder / "root.qcow2"), "qcow2")],
        append=f"root=UUID={image.ROOT_UUID} ro console=ttyS0 crashkernel=256M",
        memory_mib=memory_mib,
        memory_file=memory,
        log=folder / "console.log",
    ) as guest:
        guest.wait_ready()
        guest.run(["systemd-run", "--quiet", "/usr/bin/python3", "-c", _USER]).ok()
        vmcore._load_up(guest, base.release(KERNEL))
        guest.run(["/bin/sh", "-c", _FILL], timeout=300).ok()
        guest.run(["/bin/sh", "-c", "until test -e /run/user.ready; do sleep 1; done"], timeout=300).ok()
        after = guest.console.mark()
        guest.crash()
        reference.save_raw_vmcore(guest, memory, folder / "vmcore", after=after, timeout=300)


if __name__ == "__main__":
    for size in sys.argv[1:]:
        print(guest_vmcore(int(size)))
