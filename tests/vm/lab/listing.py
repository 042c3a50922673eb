# SPDX-License-Identifier: GPL-2.0-or-later
"""What `kdumpctl list` tells of a folder of crashes that was brought here from a disk."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .aptroot import run

TOP = Path(__file__).resolve().parents[3]


def take(disk: Path, inside: str, root: Path) -> Path:
    """Copies the folder `inside` of an ext4 filesystem to the same place below `root`, with debugfs(8)."""
    there = root / inside.lstrip("/")
    there.parent.mkdir(parents=True)
    run(["debugfs", "-R", f'rdump "{inside}" "{there.parent}"', str(disk)], timeout=120)
    return there


def listed(root: Path, inside: str = "/crash") -> list[Mapping[str, Any]]:
    """The crashes in the folder `inside` of `root`, oldest first. No dump has its final name without being complete."""
    (root / "etc").mkdir(exist_ok=True)
    (root / "etc/kdump.conf").write_text(f"path {inside}\n")
    argv = ["/usr/bin/python3", "-m", "kdumpd.cli", "list", "--json", f"--root={root}"]
    environment = {**os.environ, "PYTHONPATH": str(TOP)}
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=True, env=environment)
    found: list[Mapping[str, Any]] = json.loads(done.stdout)
    for path in (root / inside.lstrip("/")).glob("*/vmcore"):
        assert json.loads((path.parent / "manifest.json").read_text())["result"] == "complete"
    return found[::-1]
