# SPDX-License-Identifier: GPL-2.0-or-later
"""Hardware watchdogs that somebody armed: they go on counting while a capture kernel runs.

Source: Documentation/ABI/testing/sysfs-class-watchdog; without CONFIG_WATCHDOG_SYSFS nothing is known.
"""

from __future__ import annotations

from pathlib import Path

# It counts in the kernel that died, and died with it.
_SOFTWARE = "softdog"


def read_armed(root: Path = Path("/")) -> tuple[str, ...]:
    """The drivers of the armed watchdogs, as the kernel spells modules; sorted, each once."""
    found: set[str] = set()
    for folder in (root / "sys/class/watchdog").glob("watchdog[0-9]*"):
        try:
            if (folder / "state").read_text().strip() != "active":
                continue
            driver = (folder / "device/driver").resolve(strict=True)
        except OSError:
            continue
        module = driver / "module"
        found.add((module.resolve() if module.exists() else driver).name.replace("-", "_"))
    return tuple(sorted(found - {_SOFTWARE}))
