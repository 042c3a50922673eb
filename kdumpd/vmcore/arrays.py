# SPDX-License-Identifier: GPL-2.0-or-later
"""What numpy leaves open: its types, and counting bits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray as NDArray
else:

    class NDArray:
        """numpy.typing's, for annotations. Nobody asks for them at run time, and importing that module takes 6 ms."""

        def __class_getitem__(cls, _: object) -> type:
            return cls


# How many bits are set in each value of a byte.
ONES = np.unpackbits(np.arange(256, dtype=np.uint8)[:, np.newaxis], axis=1).sum(axis=1, dtype=np.uint8)
_STEP = 1 << 18


def count_bits(bits: NDArray[np.uint8]) -> int:
    """How many bits of a bitmap are set."""
    parts = (bits[at : at + _STEP] for at in range(0, len(bits), _STEP))
    return sum(int(ONES[part].sum(dtype=np.int64)) for part in parts if part.any())


def unique(values: NDArray[Any]) -> NDArray[Any]:
    """The different values of a one-dimensional array, ascending.

    numpy's own function asks numpy.ma about its argument (2.4), a part that the capture image does without.
    """
    ordered = np.sort(values)
    first = np.ones(len(ordered), dtype=np.bool_)
    np.not_equal(ordered[1:], ordered[:-1], out=first[1:])
    return ordered[first]


def ints(array: NDArray[np.integer[Any]]) -> list[int]:
    """The numbers of a one-dimensional array, of any length.

    From version 2.2 on, numpy's stubs let `tolist` return anything from an int to lists of lists of lists.
    """
    return cast("list[int]", array.tolist())
