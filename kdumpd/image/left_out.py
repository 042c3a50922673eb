# SPDX-License-Identifier: GPL-2.0-or-later
"""Stands in the capture image for a module that numpy imports but the collector never uses.

numpy imports all of itself. Its linear algebra alone brings LAPACK and the Fortran runtime, 11 MB that a capture
kernel would keep in memory for nothing. Whoever takes a name from here gets a function that says what is missing.
"""

from __future__ import annotations

from typing import Any, NoReturn


def __getattr__(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)

    def left_out(*_: object, **__: object) -> NoReturn:
        raise NotImplementedError(f"{__name__}.{name} is left out of the capture image")

    return left_out
