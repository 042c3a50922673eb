# SPDX-License-Identifier: GPL-2.0-or-later
"""The small dead kernel of tests/unit/vmcore serves the collector's tests too."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "vmcore"))
