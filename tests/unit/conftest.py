# SPDX-License-Identifier: GPL-2.0-or-later
"""What several rooms share: the small dead kernel of vmcore/, and the machines made of files of tests/service."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "service"))
sys.path.insert(0, str(Path(__file__).resolve().parent / "vmcore"))

from fake_machine import FakeMachine  # its folder has to be found first


@pytest.fixture
def machine(tmp_path: Path) -> FakeMachine:
    """A machine with one disk, crashkernel=256M and no image yet."""
    return FakeMachine(tmp_path / "machine")
