# SPDX-License-Identifier: GPL-2.0-or-later
"""What numpy leaves open, and what newer ones do otherwise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from kdumpd.vmcore.arrays import unique

PACKAGE = Path(__file__).resolve().parents[3] / "kdumpd"


@pytest.mark.parametrize("count", [0, 1, 2, 1000])
@pytest.mark.parametrize("kind", [np.int64, np.uint64])
def test_unique_finds_what_numpys_own_does(count: int, kind: type) -> None:
    values = np.random.default_rng(count).integers(0, 300, count).astype(kind)
    before = values.copy()
    found = unique(values)
    assert found.dtype == kind
    assert np.array_equal(found, np.unique(values))
    assert np.array_equal(values, before)


@pytest.mark.parametrize("room", ["vmcore", "dumpfile", "targets", "collector"])
def test_numpys_own_is_not_called_where_its_masked_arrays_are_left_out(room: str) -> None:
    files = sorted((PACKAGE / room).rglob("*.py"))
    assert files
    assert not [path.name for path in files if "np.unique(" in path.read_text()]
