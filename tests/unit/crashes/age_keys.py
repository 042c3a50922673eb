# SPDX-License-Identifier: GPL-2.0-or-later
"""Keys that age-keygen makes."""

from __future__ import annotations

import subprocess
from pathlib import Path


def make_key(path: Path) -> str:
    """Makes a private key at `path`; its public one."""
    subprocess.run(["age-keygen", "-o", path], capture_output=True, check=True)
    done = subprocess.run(["age-keygen", "-y", path], capture_output=True, text=True, check=True)
    return done.stdout.strip()
