# SPDX-License-Identifier: GPL-2.0-or-later
"""kdumpctl as its users start it, on a machine without a bus."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

TOP = Path(__file__).resolve().parents[3]


def kdumpctl(*words: str, **changes: str) -> subprocess.CompletedProcess[str]:
    environ = {
        "PATH": "/usr/bin:/bin",
        "PYTHONPATH": str(TOP),
        "LC_ALL": "C.UTF-8",
        "TZ": "UTC",
        # no bus: kdumpctl has to get along
        "DBUS_SYSTEM_BUS_ADDRESS": "unix:path=/nonexistent/kdumpd-bus",
        **changes,
    }
    return subprocess.run(
        [sys.executable, "-m", "kdumpd.cli", *words],
        capture_output=True,
        text=True,
        check=False,
        env=environ,
        timeout=60,
    )
