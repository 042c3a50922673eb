# SPDX-License-Identifier: GPL-2.0-or-later
"""kdumpctl as its users start it, on a machine without a bus."""

from __future__ import annotations

import subprocess
import sys
import tempfile
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
        timeout=180,
    )


def kdumpctl_as_nobody(root: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """The same for an unprivileged user, who may come as far as the service's folders below `root`."""
    for folder in [root, *root.parents]:
        if folder == Path(tempfile.gettempdir()):
            break
        folder.chmod(0o755)
    (root / "run/kdumpd").chmod(0o700)
    environ = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(TOP), "LC_ALL": "C.UTF-8", "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        ["setpriv", "--reuid=65534", "--clear-groups", sys.executable, "-m", "kdumpd.cli", *words, f"--root={root}"],
        capture_output=True,
        text=True,
        check=False,
        env=environ,
        timeout=180,
    )
