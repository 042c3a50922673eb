# SPDX-License-Identifier: GPL-2.0-or-later
"""Real crashed memory, made by tests/vm/lab/vmcore.py, and what kdumpd-collect makes of it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from lab import vmcore

TOP = Path(__file__).resolve().parents[2]
CORES = [("6.1", 5), ("6.1", 4), ("6.12", 5)]


def collect(*arguments: str | Path, expect: int = 0) -> subprocess.CompletedProcess[str]:
    """Runs kdumpd-collect as a user would and checks its exit status."""
    done = subprocess.run(
        ["/usr/bin/python3", "-m", "kdumpd.collector", *map(str, arguments)],
        cwd=TOP,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == expect, f"exit {done.returncode}\n{done.stdout}{done.stderr}"
    return done


@pytest.fixture(scope="session", params=CORES, ids=[f"{kernel}-{levels}level" for kernel, levels in CORES])
def core(request: pytest.FixtureRequest) -> vmcore.Vmcore:
    """Each of the raw vmcores."""
    kernel, levels = request.param
    return vmcore.raw_vmcore(kernel, levels=levels)


@pytest.fixture(scope="session")
def any_core() -> vmcore.Vmcore:
    """One vmcore, for tests to which the kernel does not matter."""
    return vmcore.raw_vmcore("6.1", levels=5)


@pytest.fixture(scope="session")
def dump(core: vmcore.Vmcore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The dump that a user gets by default: level 31, zstd."""
    out = tmp_path_factory.mktemp("dump") / "vmcore"
    collect("-d", "31", "-z", core.path, out)
    return out
