# SPDX-License-Identifier: GPL-2.0-or-later
"""What several rooms share: the small dead kernel of vmcore/, plain settings of config/, the machines made of files of
tests/service."""

from __future__ import annotations

import gc
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "service"))
sys.path.insert(0, str(Path(__file__).resolve().parent / "vmcore"))
sys.path.insert(0, str(Path(__file__).resolve().parent / "config"))

from fake_machine import FakeMachine  # its folder has to be found first


@pytest.fixture(autouse=True)
def descriptors() -> Iterator[None]:
    """A test closes what it opens: a worker that runs thousands of them would run out, and select(2) takes none above
    1023. Some stay for what is set up once, and threads that end have a moment for theirs."""
    before = len(os.listdir("/proc/self/fd"))
    yield
    left, end = os.listdir("/proc/self/fd"), time.monotonic() + 30
    while len(left) > before + 8 and time.monotonic() < end:
        gc.collect()
        time.sleep(0.1)
        left = os.listdir("/proc/self/fd")
    if len(left) > before + 8:
        places = {os.readlink(f"/proc/self/fd/{name}") for name in left if os.path.islink(f"/proc/self/fd/{name}")}
        pytest.fail(f"{len(left) - before} descriptors stay open, among {sorted(places)[:10]}")


@pytest.fixture
def machine(tmp_path: Path) -> FakeMachine:
    """A machine with one disk, crashkernel=256M and no image yet."""
    return FakeMachine(tmp_path / "machine")
