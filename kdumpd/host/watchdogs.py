# SPDX-License-Identifier: GPL-2.0-or-later
"""Hardware watchdogs that somebody armed: they go on counting while a capture kernel runs.

Source: Documentation/ABI/testing/sysfs-class-watchdog; without CONFIG_WATCHDOG_SYSFS nothing is known. A watchdog whose
driver names no parent (`watchdog_device.parent`, drivers/watchdog/i6300esb.c of 6.1 for one) is a virtual device in
sysfs: nothing leads from it to its driver but the name that it gives itself.
"""

from __future__ import annotations

from pathlib import Path

# It counts in the kernel that died, and died with it.
_SOFTWARE = frozenset({"softdog", "Software Watchdog"})


def read_armed(root: Path = Path("/")) -> tuple[str, ...]:
    """The drivers of the armed watchdogs, as the kernel spells modules; sorted, each once.

    Where a watchdog does not tell its driver, all drivers of watchdogs that are loaded: one too many costs some memory,
    one too few the dump. Where none is loaded it is built in, and called by the watchdog's own name.
    """
    found: set[str] = set()
    for folder in sorted((root / "sys/class/watchdog").glob("watchdog[0-9]*")):
        if _text(folder / "state") != "active":
            continue
        identity = _text(folder / "identity")
        if identity in _SOFTWARE:
            continue
        found.update(_driver(folder, identity, root) or _loaded(root) or {identity or folder.name})
    return tuple(sorted(found - _SOFTWARE))


def _driver(folder: Path, identity: str, root: Path) -> set[str]:
    """The module of the driver that the watchdog's device has, or that is called as the watchdog is."""
    for driver in (folder / "device/driver", *(root / "sys/bus").glob(f"*/drivers/{_plain(identity)}")):
        try:
            driver = driver.resolve(strict=True)
        except OSError:
            continue
        module = driver / "module"
        return {(module.resolve() if module.exists() else driver).name.replace("-", "_")}
    return set()


def _plain(identity: str) -> str:
    """A pattern that no name fits but this one."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in identity) or "[]]"


def _loaded(root: Path) -> set[str]:
    return {holder.name for holder in (root / "sys/module/watchdog/holders").glob("*")} - _SOFTWARE


def _text(path: Path) -> str:
    """A line of sysfs; what cannot be read says nothing, as does what would be no file's name."""
    try:
        text = path.read_text(errors="replace").strip()
    except OSError:
        return ""
    return "" if "/" in text else text
