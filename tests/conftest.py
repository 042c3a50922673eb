# SPDX-License-Identifier: GPL-2.0-or-later
"""For all tests: the checkout comes before any installed kdumpd, and `lab` (tests/vm/lab) can be imported."""

from __future__ import annotations

import sys
from pathlib import Path

TOP = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TOP), str(TOP / "tests" / "vm")]
