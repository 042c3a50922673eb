# SPDX-License-Identifier: GPL-2.0-or-later
"""For all tests: the checkout comes before any installed kdumpd, `lab` (tests/vm/lab) is found, disks stay small, and
how fast the machine is decides nothing."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Generator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

TOP = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TOP), str(TOP / "tests" / "vm")]

# `tests/run` takes the same examples each time: it fails for a change, not by chance. By hand they are others.
settings.register_profile(
    "kdumpd",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    derandomize="KDUMPD_SAME_EXAMPLES" in os.environ,
)
settings.load_profile("kdumpd")

_FAILED = pytest.StashKey[bool]()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.CallInfo[None], None]:
    """Remembers which tests failed."""
    report = (yield).get_result()  # type: ignore[attr-defined]
    if report.failed:
        item.stash[_FAILED] = True


@pytest.fixture
def tmp_path(tmp_path: Path, request: pytest.FixtureRequest) -> Generator[Path, None, None]:
    """As pytest's own, but what a test that passed has written goes with it: dumps fill a disk in one run."""
    yield tmp_path
    if not request.node.stash.get(_FAILED, False):
        shutil.rmtree(tmp_path, ignore_errors=True)
