# SPDX-License-Identifier: GPL-2.0-or-later
"""Is there a systemd to hand work to, and how does it spell names? Knows no unit by name."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path


def have_units(root: Path = Path("/"), environ: Mapping[str, str] = os.environ) -> bool:
    """True for a process that systemd started on a machine that systemd manages (sd_booted(3), systemd.exec(5)).

    A service in a chroot, a container without systemd or a shell works with child processes instead.
    """
    return (root / "run/systemd/system").is_dir() and "INVOCATION_ID" in environ


def instance(text: str) -> str:
    """`text` as the instance of a unit, which %I turns back (systemd.unit(5), "string escaping")."""

    def escape(found: re.Match[bytes]) -> bytes:
        return b"\\x%02x" % ord(found[0])

    return re.sub(rb"[^A-Za-z0-9:_.]|^\.", escape, text.encode(errors="surrogateescape")).decode()
