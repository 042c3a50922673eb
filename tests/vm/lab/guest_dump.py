# SPDX-License-Identifier: GPL-2.0-or-later
"""The memory of a running guest as QEMU itself dumps it (QMP dump-guest-memory): ELF, with and without a note of
VMCOREINFO, and kdump-compressed.

The note is there when the guest has a vmcoreinfo device and the driver that tells it the address: here the driver is
kept away at boot, and loaded between two dumps.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import os
import sys
from pathlib import Path

from . import image
from .aptroot import CACHE, run
from .cached import digest, made_once
from .qemu import Machine, overlay

MEMORY_MIB = 512


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class GuestDumps:
    """`bare` has no note, `elf` and `kdump` have one; the last is flattened, as QEMU writes it. The guest stood still
    between the last two. `marker` is a line of its kernel log."""

    bare: Path
    elf: Path
    kdump: Path
    release: str
    marker: str


def guest_dumps(kernel: str = "6.1") -> GuestDumps:
    """Dumps of a guest with a kernel of series `kernel`."""
    base = image.base()
    key = digest("\0".join([base.release(kernel), inspect.getsource(_make)]))

    def make(scratch: Path) -> None:
        (scratch / "facts.json").write_text(json.dumps(_make(scratch, base, kernel)) + "\n")

    folder = made_once(CACHE / "guest-dump", kernel, key, make)
    facts = json.loads((folder / "facts.json").read_text())
    return GuestDumps(bare=folder / "bare", elf=folder / "elf", kdump=folder / "kdump", **facts)


def _make(folder: Path, base: image.Image, kernel: str) -> dict[str, str]:
    disk = overlay(base.disk, folder / "root.qcow2")
    marker = f"kdumpd-marker-{os.urandom(8).hex()}"
    with Machine(
        kernel=base.kernel(kernel),
        initrd=base.initrd(kernel),
        disks=[(disk, "qcow2")],
        append=f"root=UUID={image.ROOT_UUID} ro console=ttyS0 modprobe.blacklist=qemu_fw_cfg",
        memory_mib=MEMORY_MIB,
        devices=["vmcoreinfo"],
        log=folder / "console.log",
    ) as guest:
        guest.wait_ready()
        guest.run(["/bin/sh", "-c", f"echo {marker} > /dev/kmsg"]).ok()
        _dump(guest, folder / "bare")
        guest.run(["modprobe", "qemu_fw_cfg"]).ok()
        guest.qmp("stop")
        _dump(guest, folder / "elf")
        guest.qmp("dump-guest-memory", paging=False, protocol=f"file:{folder / 'kdump'}", format="kdump-zlib")
    disk.unlink()
    return {"release": base.release(kernel), "marker": marker}


def _dump(guest: Machine, path: Path) -> None:
    whole = path.with_suffix(".whole")
    guest.qmp("dump-guest-memory", paging=False, protocol=f"file:{whole}")
    run(["cp", "--sparse=always", str(whole), str(path)], timeout=120)
    whole.unlink()


if __name__ == "__main__":
    sys.stdout.write(f"{guest_dumps()}\n")
