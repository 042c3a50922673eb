# SPDX-License-Identifier: GPL-2.0-or-later
"""The rank of a page frame is its position among all set bits."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdumpd.dumpfile.ranks import Ranks
from kdumpd.errors import DumpFormatError
from kdumpd.vmcore.arrays import count_bits

PFNS = st.lists(st.integers(0, 40_000), unique=True).map(sorted)


@given(PFNS, PFNS)
def test_ranks_are_positions(members: list[int], asked: list[int]) -> None:
    bits = np.zeros(40_008, dtype=np.uint8)
    bits[members] = 1
    ranks = Ranks.of_array(np.packbits(bits, bitorder="little"))
    assert ranks.count == count_bits(np.packbits(bits)) == len(members)
    assert ranks.of(np.array(members, dtype=np.int64)).tolist() == list(range(len(members)))
    found, there = ranks.find(np.array(asked, dtype=np.int64))
    assert there.tolist() == [pfn in members for pfn in asked]
    assert [int(rank) for rank in found] == [sum(member < pfn for member in members) for pfn in asked]


def test_what_is_outside_has_no_rank() -> None:
    ranks = Ranks.of_array(np.full(3, 0xFF, dtype=np.uint8))
    _, there = ranks.find(np.array([-1, 0, 23, 24, 1 << 40]))
    assert there.tolist() == [False, True, True, False, False]
    with pytest.raises(DumpFormatError, match="pfn 0x18"):
        ranks.of(np.array([24]))
