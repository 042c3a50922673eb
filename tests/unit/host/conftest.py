# SPDX-License-Identifier: GPL-2.0-or-later
"""Fixture machines: the parts of /proc, /sys and /dev that say what disks there are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest


class Machine:
    """A tree below `root`. Disks hang below a PCI device with an AHCI-like driver unless told otherwise."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for folder in ("sys/class/block", "sys/dev/block", "sys/devices", "dev", "proc/self"):
            (root / folder).mkdir(parents=True)

    def mounts(self, text: str) -> None:
        """Sets mountinfo."""
        (self.root / "proc/self/mountinfo").write_text(text)

    def disk(
        self,
        name: str,
        number: str,
        *,
        parts: Mapping[str, str] | None = None,
        below: str = "pci0000:00/0000:00:1f.2/ata1/host0/target0:0:0/0:0:0:0",
    ) -> Path:
        """A disk and its partitions (name -> number); returns the disk's folder."""
        folder = self._block(name, number, f"sys/devices/{below}/block/{name}")
        for part, part_number in (parts or {}).items():
            part_folder = self._block(part, part_number, f"sys/devices/{below}/block/{name}/{part}")
            (part_folder / "partition").write_text("1\n")
        return folder

    def virtual(self, name: str, number: str, files: Mapping[str, str]) -> None:
        """A block device that is made by software, with attributes (path -> text)."""
        folder = self._block(name, number, f"sys/devices/virtual/block/{name}")
        for path, text in files.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(text + "\n")

    def driver(self, device: str, bus: str, driver: str, *, module: str | None, modalias: str | None) -> None:
        """Binds the device at sys/devices/`device` to a driver, built in when `module` is None."""
        folder = self.root / "sys/devices" / device
        folder.mkdir(parents=True, exist_ok=True)
        place = self.root / "sys/bus" / bus / "drivers" / driver
        place.mkdir(parents=True, exist_ok=True)
        (folder / "driver").symlink_to(place)
        if modalias is not None:
            (folder / "modalias").write_text(modalias + "\n")
        if module is not None and not (place / "module").is_symlink():
            (self.root / "sys/module" / module).mkdir(parents=True, exist_ok=True)
            (self.root / "sys/module" / module / "initstate").write_text("live\n")
            (place / "module").symlink_to(self.root / "sys/module" / module)

    def tag(self, kind: str, value: str, block: str) -> None:
        """A link of udev: `kind` is "uuid" or "label"."""
        folder = self.root / f"dev/disk/by-{kind}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / value).symlink_to(f"../../{block}")

    def tag_by_id(self, name: str, block: str) -> None:
        """A link of udev in by-id."""
        folder = self.root / "dev/disk/by-id"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).symlink_to(f"../../{block}")

    def _block(self, name: str, number: str, path: str) -> Path:
        folder = self.root / path
        folder.mkdir(parents=True, exist_ok=True)
        (self.root / "sys/class/block" / name).symlink_to(folder)
        (self.root / "sys/dev/block" / number).symlink_to(folder)
        (self.root / "dev" / name).touch()
        return folder


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """An empty machine below tmp_path."""
    return Machine(tmp_path)
