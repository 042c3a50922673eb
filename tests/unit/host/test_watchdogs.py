# SPDX-License-Identifier: GPL-2.0-or-later
"""Armed watchdogs, in trees as sysfs shows them."""

from __future__ import annotations

from pathlib import Path

from kdumpd.host.watchdogs import read_armed


def watchdog(root: Path, name: str, state: str, driver: str | None, *, module: str | None = None) -> None:
    folder = root / "sys/class/watchdog" / name
    folder.mkdir(parents=True)
    (folder / "state").write_text(f"{state}\n")
    (folder / "identity").write_text(f"{driver or 'Some [Timer] of/a board'}\n")
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
    watchdog(tmp_path, "watchdog3", "inactive", None)
    watchdog(tmp_path, "watchdog4", "active", "sp805-wdt")
    assert read_armed(tmp_path) == ("i6300esb", "sp805_wdt")


def alone(root: Path, name: str, identity: str) -> None:
    """An armed watchdog whose driver named no parent."""
    folder = root / "sys/class/watchdog" / name
    folder.mkdir(parents=True)
    (folder / "state").write_text("active\n")
    (folder / "identity").write_text(f"{identity}\n")


def test_one_that_leads_to_no_driver_is_known_by_its_name(tmp_path: Path) -> None:
    """As i6300esb of Linux 6.1: sysfs shows it below devices/virtual."""
    alone(tmp_path, "watchdog0", "i6300ESB timer")
    driver = tmp_path / "sys/bus/pci/drivers/i6300ESB timer"
    driver.mkdir(parents=True)
    (tmp_path / "sys/module/i6300esb").mkdir(parents=True)
    (driver / "module").symlink_to(tmp_path / "sys/module/i6300esb")
    assert read_armed(tmp_path) == ("i6300esb",)


def test_one_that_tells_nothing_has_each_driver_that_is_loaded(tmp_path: Path) -> None:
    alone(tmp_path, "watchdog0", "Some [Timer] of/a board")
    assert read_armed(tmp_path) == ("watchdog0",)  # built in: nothing to load, but to be petted
    for holder in ("softdog", "wdat_wdt", "hpwdt"):
        (tmp_path / "sys/module/watchdog/holders" / holder).mkdir(parents=True)
    assert read_armed(tmp_path) == ("hpwdt", "wdat_wdt")


def test_the_kernels_own_one_is_none(tmp_path: Path) -> None:
    alone(tmp_path, "watchdog0", "Software Watchdog")
    assert read_armed(tmp_path) == ()
