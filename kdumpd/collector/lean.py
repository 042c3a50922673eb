# SPDX-License-Identifier: GPL-2.0-or-later
"""numpy without the parts of it that the collector never calls.

numpy imports all of itself. Random numbers, masked arrays, polynomials, Fourier transforms, linear algebra and the
texts of its help take half of the time that this needs, and megabytes of memory, in a kernel that has little of both.
The capture image does not even hold them (image.left_out); here it is the same for the command.
"""

from __future__ import annotations

import importlib
import sys
import types
from typing import Any, NoReturn

_UNUSED = (
    "ctypeslib", "fft", "linalg", "ma", "polynomial", "random",
    # numpy.core became numpy._core in 2.0.
    *(f"{core}.{name}" for core in ("core", "_core") for name in ("_add_newdocs", "_add_newdocs_scalars")),
)  # fmt: skip
# What dataclasses and numpy import for functions of theirs that nobody calls here: with tokenize, dis and opcode, which
# these bring along, a twentieth of all imports, and 0.6 MB.
_LATER = ("ast", "inspect")


def without_unused_parts() -> None:
    """Has an `import numpy` that comes later find stand-ins in their place, and lets modules wait that are hardly ever
    used. For a process that is the collector and nothing else."""
    for name in _LATER:
        sys.modules.setdefault(name, _Later(name))
    if "numpy" not in sys.modules:
        for name in _UNUSED:
            module = types.ModuleType(f"numpy.{name}")
            vars(module)["__getattr__"] = _stand_in
            sys.modules[module.__name__] = module


class _Later(types.ModuleType):
    """A module that is imported when something of it is used."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)  # the import system looks for them
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return getattr(importlib.import_module(self.__name__), name)


def _stand_in(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)

    def left_out(*_: object, **__: object) -> NoReturn:
        raise NotImplementedError(f"numpy's {name} is left out of the collector")

    return left_out
