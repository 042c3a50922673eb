# SPDX-License-Identifier: GPL-2.0-or-later
"""numpy without the parts of it that the collector never calls.

numpy 1 imports random numbers, masked arrays, polynomials and Fourier transforms with itself: a third of the time
that this takes, and 3 MB of memory, in a kernel that has little of both. numpy 2 imports them when they are asked for.
"""

from __future__ import annotations

import sys
import types

_UNUSED = ("fft", "ma", "polynomial", "random")


def without_unused_parts() -> None:
    """Has an `import numpy` that comes later find empty modules in their place. For a process that is the collector
    and nothing else."""
    if "numpy" not in sys.modules:
        for name in _UNUSED:
            sys.modules[f"numpy.{name}"] = types.ModuleType(f"numpy.{name}")
