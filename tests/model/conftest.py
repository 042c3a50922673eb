# SPDX-License-Identifier: GPL-2.0-or-later
"""The machine of files is that of the tests of the service."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "service"))
