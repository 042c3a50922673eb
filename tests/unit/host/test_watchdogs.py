# SPDX-License-Identifier: GPL-2.0-or-later
"""Armed watchdogs, in trees as sysfs shows them."""

from __future__ import annotations

from pathlib import Path

from kdumpd.host.watchdogs import read_armed


def watchdog(root: Path, name: str, state: str, driver: str | None, *, module: str | None = None) -> None:
    folder = root / "sys/class/watchdog" / name
    folder.mkdir(parents=True)
    (folder / "state").write_text(f"{state}\n")
    if driver is None:
        return
    device, place = root / "sys/devices" / name, root / "sys/bus/pci/drivers" / driver
    device.mkdir(parents=True)
    place.mkdir(parents=True)
    (folder / "device").symlink_to(device)
    (device / "driver").symlink_to(place)
    if module is not None:
        (root / "sys/module" / module).mkdir(parents=True)
        (place / "module").symlink_to(root / "sys/module" / module)


def test_only_what_counts_is_told(tmp_path: Path) -> None:
    assert read_armed(tmp_path) == ()
    watchdog(tmp_path, "watchdog0", "active", "i6300ESB timer", module="i6300esb")
    watchdog(tmp_path, "watchdog1", "inactive", "iTCO_wdt", module="iTCO_wdt")
    watchdog(tmp_path, "watchdog2", "active", "softdog", module="softdog")
    watchdog(tmp_path, "watchdog3", "active", None)
    watchdog(tmp_path, "watchdog4", "active", "sp805-wdt")
    assert read_armed(tmp_path) == ("i6300esb", "sp805_wdt")
