# SPDX-License-Identifier: GPL-2.0-or-later
"""An engine for the tests of the service."""

from __future__ import annotations

import pytest
from engine_bench import Bench
from fake_machine import FakeMachine


@pytest.fixture
def bench(machine: FakeMachine) -> Bench:
    """An engine on that machine."""
    return Bench(machine)
