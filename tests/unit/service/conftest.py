# SPDX-License-Identifier: GPL-2.0-or-later
"""Machines made of files for the tests of the service."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "service"))

from engine_bench import Bench  # the folder of fake_machine has to be found first
from fake_machine import FakeMachine


@pytest.fixture
def machine(tmp_path: Path) -> FakeMachine:
    """A machine with one disk, crashkernel=256M and no image yet."""
    return FakeMachine(tmp_path / "machine")


@pytest.fixture
def bench(machine: FakeMachine) -> Bench:
    """An engine on that machine."""
    return Bench(machine)
