# SPDX-License-Identifier: GPL-2.0-or-later
"""Firmware-assisted dump of POWER machines (Documentation/arch/powerpc/firmware-assisted-dump.rst). Facts only."""

from __future__ import annotations

from pathlib import Path

from kdumpd.host.files import read_int

# The folder is there since v5.5, the single files are its older names.
_ENABLED = ("/sys/kernel/fadump/enabled", "/sys/kernel/fadump_enabled")


def read_fadump(root: Path = Path("/")) -> bool:
    """True when a panic goes to the firmware instead of a capture kernel that kexec loaded."""
    return read_int(root, *_ENABLED) == 1
