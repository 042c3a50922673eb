# SPDX-License-Identifier: GPL-2.0-or-later
"""`first_byte.py BEGAN WORDS...` is kdumpd-collect WORDS, and prints the seconds from BEGAN to its first written byte.

BEGAN is CLOCK_MONOTONIC just before the interpreter was started.
"""

from __future__ import annotations

import os
import sys
import time
from typing import Any

_began = float(sys.argv[1])
_real = os.pwrite


def _pwrite(*arguments: Any) -> int:
    sys.stdout.write(f"{time.monotonic() - _began:.3f}\n")
    os.pwrite = _real
    return _real(*arguments)


os.pwrite = _pwrite

from kdumpd.collector.__main__ import main  # noqa: E402 # importing is what is measured

sys.argv[1:] = sys.argv[2:]
main()
