# SPDX-License-Identifier: GPL-2.0-or-later
"""Captures by the images that the distribution's own tools make."""

from __future__ import annotations

from pathlib import Path

import pytest
from lab import proof, tiny


@pytest.mark.parametrize("builder", ["dracut", "initramfs-tools"])
def test_this_debian_s_tools(builder: str, scratch: Path) -> None:
    """On Debian 12 dracut 059 and initramfs-tools 0.142; with the 192 MiB that their images need."""
    disk = scratch / "dumps.raw"
    uuid = tiny.ext4(disk)
    outcome = tiny.crash(
        f"ext4 UUID={uuid}\npath /crash\nbuilder {builder}\n",
        scratch,
        disks=[tiny.Disk(path=disk)],
        crashkernel="192M",
        name=builder,
    )
    folder = tiny.take_ext4(disk, "/crash", scratch / "crash")
    proof.complete(folder)
    proof.marker(folder, outcome.marker)
    proof.accepted(folder)


def test_dracut_ng_of_debian_13(scratch: Path) -> None:
    """Built with trixie's dracut 106, Python 3.13 and udev for its kernel 6.12."""
    disk = scratch / "dumps.raw"
    uuid = tiny.ext4(disk)
    outcome = tiny.crash(
        f"ext4 UUID={uuid}\npath /crash\nbuilder dracut\n",
        scratch,
        disks=[tiny.Disk(path=disk)],
        suite="trixie",
        kernel="6.12-trixie",
        crashkernel="192M",
        name="dracut-ng",
    )
    folder = tiny.take_ext4(disk, "/crash", scratch / "crash")
    proof.complete(folder)
    proof.marker(folder, outcome.marker)
    proof.accepted(folder)
