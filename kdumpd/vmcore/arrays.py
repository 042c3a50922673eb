# SPDX-License-Identifier: GPL-2.0-or-later
"""What numpy's own types leave open."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import numpy.typing as npt


def ints(array: npt.NDArray[np.integer[Any]]) -> list[int]:
    """The numbers of a one-dimensional array, of any length.

    From version 2.2 on, numpy's stubs let `tolist` return anything from an int to lists of lists of lists.
    """
    return cast("list[int]", array.tolist())
