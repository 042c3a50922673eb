# SPDX-License-Identifier: GPL-2.0-or-later
"""numpy without the parts of it that the collector never calls.

numpy imports all of itself. Random numbers, masked arrays, polynomials, Fourier transforms, linear algebra and the
texts of its help take half of the time that this needs, and megabytes of memory, in a kernel that has little of both.
The capture image does not even hold them (image.left_out); here it is the same for the command.
"""

from __future__ import annotations

import sys
import types
from typing import Any, NoReturn

_UNUSED = (
    "ctypeslib", "fft", "linalg", "ma", "polynomial", "random",
    # numpy.core became numpy._core in 2.0.
    *(f"{core}.{name}" for core in ("core", "_core") for name in ("_add_newdocs", "_add_newdocs_scalars")),
)  # fmt: skip


def without_unused_parts() -> None:
    """Has an `import numpy` that comes later find stand-ins in their place. For a process that is the collector and
    nothing else."""
    if "numpy" not in sys.modules:
        for name in _UNUSED:
            module = types.ModuleType(f"numpy.{name}")
            vars(module)["__getattr__"] = _stand_in
            sys.modules[module.__name__] = module


def _stand_in(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)

    def left_out(*_: object, **__: object) -> NoReturn:
        raise NotImplementedError(f"numpy's {name} is left out of the collector")

    return left_out
