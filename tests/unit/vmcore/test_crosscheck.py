# SPDX-License-Identifier: GPL-2.0-or-later
"""Where the type information contradicts VMCOREINFO, pages are kept and both numbers named."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from fake_kernel import COMMON, NEW, OFFSETS, OLD, SIZE_OF_PAGE, FakeKernel
from hypothesis import given, settings
from hypothesis import strategies as st

from kdumpd.errors import VmcoreError
from kdumpd.vmcore.classify import classify
from kdumpd.vmcore.crosscheck import agreed
from kdumpd.vmcore.elfcore import ElfCore
from kdumpd.vmcore.kernel_facts import KernelFacts
from kdumpd.vmcore.machines import page_tables
from kdumpd.vmcore.memmap import MemoryMap
from kdumpd.vmcore.rules import rules_of
from kdumpd.vmcore.vmcoreinfo import parse_vmcoreinfo

FACTS = KernelFacts(
    release="6.1.0-fake",
    build_id=None,
    offsets={f"page.{name}": value for name, value in OFFSETS.items()},
    sizes={"page": SIZE_OF_PAGE, "mem_section": 16},
    values={
        "PG_lru": 4, "PG_private": 13, "PG_swapcache": 10, "PG_swapbacked": 19, "PG_hwpoison": 22,
        "PGTY_buddy": 0xF0, "PGTY_offline": 0xF1, "PGTY_hugetlb": 0xF4, "PGTY_slab": 0xF5, "PGTY_unaccepted": 0xF7,
    },
    symbols={},
    absolute={},
    source="test",
)  # fmt: skip


def test_agreement_changes_nothing() -> None:
    notes: list[str] = []
    info = parse_vmcoreinfo(FakeKernel(NEW).vmcoreinfo())
    assert agreed(info, FACTS, notes) is info
    assert agreed(info, None, notes) is info
    assert not notes


def test_a_page_type_that_is_contradicted_is_not_left_out() -> None:
    info = parse_vmcoreinfo(FakeKernel(NEW).vmcoreinfo())
    notes: list[str] = []
    facts = dataclasses.replace(FACTS, values={**FACTS.values, "PGTY_buddy": 0xF9})
    rules = rules_of(agreed(info, facts, notes))
    assert rules.buddy_type is None
    assert any("free pages are kept" in text for text in rules.missing)
    (note,) = notes
    assert "PAGE_BUDDY_MAPCOUNT_VALUE" in note and str(-(16 << 24)) in note and str(0xF9 << 24) in note


@pytest.mark.parametrize("member", ["flags", "mapping", "private", "_mapcount", "compound_head"])
def test_a_member_of_struct_page_that_is_contradicted_stops_the_filter(member: str) -> None:
    info = parse_vmcoreinfo(FakeKernel(OLD).vmcoreinfo())
    notes: list[str] = []
    facts = dataclasses.replace(FACTS, offsets={**FACTS.offsets, f"page.{member}": 32}, values={})
    with pytest.raises(VmcoreError, match=f"page.{member}"):
        rules_of(agreed(info, facts, notes))
    assert len(notes) == 1 and f"OFFSET(page.{member}) is {OFFSETS[member]}" in notes[0] and "32" in notes[0]


@settings(max_examples=30)
@given(
    wrong=st.dictionaries(st.sampled_from(sorted(FACTS.values)), st.integers(0, 255), max_size=4),
    seed=st.integers(0, 1 << 16),
    old=st.booleans(),
)
def test_no_disagreement_drops_a_page_that_agreement_keeps(
    wrong: dict[str, int], seed: int, old: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    kernel = FakeKernel(OLD if old else NEW)
    random = np.random.default_rng(seed)
    kernel.pages[:] = random.integers(0, 1 << 64, kernel.pages.shape, dtype=np.uint64)
    kinds = random.choice(np.array([0xFFFFFFFF, 0xF0 << 24, 0xF5 << 24, ~0x80 & 0xFFFFFFFF], dtype=np.uint32), 4096)
    kernel.pages.view(np.uint32)[:, OFFSETS["_mapcount"] // 4] = kinds
    # Free blocks of one page, nothing compound: a range that is no longer left out would bare what lies inside it.
    kernel.pages[:, OFFSETS["private"] // 8] = 0
    kernel.pages[:, OFFSETS["flags"] // 8] &= ~np.uint64(COMMON["NUMBER(PG_head_mask)"] | 1 << OLD["NUMBER(PG_slab)"])
    types = {name: value for name, value in FACTS.values.items() if not (old and name.startswith("PGTY_"))}
    facts = dataclasses.replace(FACTS, values={**types, **wrong})
    path = kernel.write(tmp_path_factory.mktemp("core") / "core")
    with ElfCore(path) as core:
        info = parse_vmcoreinfo(kernel.vmcoreinfo())
        memory_map = MemoryMap(core, info, page_tables(core, info))
        sure = classify(core, memory_map, rules_of(info), 31)
        doubting = classify(core, memory_map, rules_of(agreed(info, facts, [])), 31)
    path.unlink()
    assert not (sure.kept & ~doubting.kept).any()
