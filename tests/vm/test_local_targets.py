# SPDX-License-Identifier: GPL-2.0-or-later
"""Captures to disks of this machine, whatever lies between the filesystem and the disk."""

from __future__ import annotations

from pathlib import Path

from lab import image, proof, tiny, vmcore


def test_ext4_by_uuid(scratch: Path) -> None:
    disk = scratch / "dumps.raw"
    uuid = tiny.ext4(disk)
    outcome = tiny.crash(f"ext4 UUID={uuid}\npath /crash\n", scratch, disks=[tiny.Disk(path=disk)])
    assert "SAVED /crash/" in outcome.capture
    folder = tiny.take_ext4(disk, "/crash", scratch / "crash")
    proof.complete(folder)
    proof.marker(folder, outcome.marker)
    proof.accepted(folder)
    proof.opens(folder, vmcore.debug_symbols(image.base().release("6.1")), outcome.marker, ("init", "kthreadd"))
