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
