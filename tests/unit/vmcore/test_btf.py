# SPDX-License-Identifier: GPL-2.0-or-later
"""BTF answers what the kernel's own type information says, and nothing about what is damaged."""

from __future__ import annotations

import contextlib
import struct

import pytest
from fake_types import UNION, Types
from hypothesis import given
from hypothesis import strategies as st

from kdumpd.errors import VmcoreError
from kdumpd.vmcore.btf import Btf


def sample() -> Types:
    types = Types()
    long = types.integer("long unsigned int", 8)
    pointer = types.pointer(0)
    inner = types.struct("thread_struct", 64, [("es", long, 0), ("sp", long, 192)])
    const = types.alias("", types.alias("thread_t", inner))
    list_head = types.struct("list_head", 16, [("next", pointer, 0), ("prev", pointer, 64)])
    unnamed = types.struct("", 16, [("lru", list_head, 0)])
    either = types.struct("", 16, [("", unnamed, 0), ("compound_head", long, 0)], kind=UNION)
    types.struct("page", 64, [("flags", long, 0), ("", either, 64), ("_mapcount", long, 384)])
    types.struct("task_struct", 128, [("thread", const, 512), ("row", types.array(list_head, 4), 0)])
    types.enum("pagetype", {"PGTY_buddy": 0xF0, "PGTY_slab": 0xF5, "negative": -2})
    types.enum64("wide", {"WIDE": 1 << 40})
    types.enum("other", {"TWICE": 1})
    types.enum("another", {"TWICE": 2})
    return types


def test_members_are_found_through_unnamed_structs_and_typedefs() -> None:
    btf = Btf(sample().blob())
    for path, offset in {
        "page.flags": 0,
        "page.lru": 8,
        "page.lru.prev": 16,
        "page.compound_head": 8,
        "page._mapcount": 48,
        "task_struct.thread": 64,
        "task_struct.thread.sp": 88,
        "task_struct.row.prev": 8,
    }.items():
        assert btf.offset_of(path) == offset, path


def test_what_is_not_there_has_no_answer() -> None:
    btf = Btf(sample().blob())
    for path in ("page.nothing", "nothing.flags", "page", "page.flags.bit", "", ".", "page..flags"):
        assert btf.offset_of(path) is None, path
    assert btf.size_of("nothing") is None
    assert btf.size_of("long unsigned int") is None
    assert btf.enumerator("nothing") is None


def test_sizes_and_enumerators() -> None:
    btf = Btf(sample().blob())
    assert btf.size_of("page") == 64
    assert btf.size_of("list_head") == 16
    assert btf.enumerator("PGTY_slab") == 0xF5
    assert btf.enumerator("WIDE") == 1 << 40
    assert btf.enumerator("TWICE") is None


def test_types_after_an_unknown_kind_are_not_guessed_at() -> None:
    types = sample()
    types.types += struct.pack("<III", 0, 99 << 24, 0)
    types.struct("behind", 8, [("x", 1, 0)])
    btf = Btf(types.blob())
    assert btf.size_of("page") == 64
    assert btf.size_of("behind") is None


def test_a_struct_that_contains_itself_ends() -> None:
    types = Types()
    types.struct("loop", 8, [("", 1, 0), ("", 1, 0)])
    assert Btf(types.blob()).offset_of("loop.x") is None
    types.alias("a", 3)
    types.alias("b", 2)
    types.struct("uses", 8, [("a", 2, 0)])
    assert Btf(types.blob()).offset_of("uses.a.x") is None


@pytest.mark.parametrize("cut", [0, 10, 24, 60])
def test_a_cut_blob_is_refused(cut: int) -> None:
    with pytest.raises(VmcoreError, match="BTF"):
        Btf(sample().blob()[:cut])


@given(st.data())
def test_damage_costs_answers_and_never_more(data: st.DataObject) -> None:
    blob = bytearray(sample().blob())
    for _ in range(data.draw(st.integers(1, 8))):
        blob[data.draw(st.integers(0, len(blob) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(VmcoreError):
        btf = Btf(bytes(blob))
        for path in ("page.compound_head", "task_struct.thread.sp", "page.lru.prev"):
            btf.offset_of(path)
        btf.size_of("page")
        btf.enumerator("PGTY_slab")
