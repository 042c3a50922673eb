# SPDX-License-Identifier: GPL-2.0-or-later
"""Each kept page is written once, in the first stage that names it."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from kdumpd.collector.order import Waiting, batches

PFNS = st.lists(st.integers(0, 700_000), unique=True).map(sorted)


def bitmap(pfns: list[int]) -> np.ndarray:
    bits = np.zeros(700_008, dtype=np.uint8)
    bits[pfns] = 1
    return np.packbits(bits, bitorder="little")


@given(PFNS, st.lists(PFNS, max_size=3), PFNS)
def test_stages_share_the_kept_pages_out(kept: list[int], stages: list[list[int]], slab: list[int]) -> None:
    waiting = Waiting(bitmap(kept))
    left = set(kept)
    for stage in stages:
        taken = waiting.take(np.array([-5, *stage, 1 << 40], dtype=np.int64)).tolist()
        assert taken == sorted(left & set(stage))
        left -= set(taken)
    taken = [int(pfn) for piece in waiting.take_marked(bitmap(slab)) for pfn in piece]
    assert taken == sorted(left & set(slab))
    left -= set(taken)
    assert [int(pfn) for piece in waiting.take_all() for pfn in piece] == sorted(left)
    assert list(waiting.take_all()) == []


@given(st.lists(st.integers(0, 9)), st.integers(1, 5))
def test_batches_are_full_but_for_the_last(lengths: list[int], size: int) -> None:
    pieces, at = [], 0
    for length in lengths:
        pieces.append(np.arange(at, at + length))
        at += length
    found = [batch.tolist() for batch in batches(pieces, size)]
    assert [pfn for batch in found for pfn in batch] == list(range(at))
    assert all(len(batch) == size for batch in found[:-1])
    assert all(found)
