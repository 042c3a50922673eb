# SPDX-License-Identifier: GPL-2.0-or-later
"""The symbol table of a kernel before 6.0 is found in its image, and nothing else is taken for one."""

from __future__ import annotations

import contextlib
import random

import pytest
from fake_types import SymbolTable
from hypothesis import given, settings
from hypothesis import strategies as st

from kdumpd.errors import VmcoreError
from kdumpd.vmcore.kallsyms import Kallsyms
from kdumpd.vmcore.kallsyms_search import find_tables

IMAGE = 0xFFFFFFFF81000000
AT = 0x1FE008  # the token table lies on both sides of a piece of a MiB
SYMBOLS = [("_stext", "T", IMAGE), *((f"function_{number}", "t", IMAGE + 16 * number) for number in range(1, 700))]
# Digits of another table, such as the kernel's keymaps have them.
DECOY = b"".join(b"%c\0" % code for code in range(256))


class Image:
    """4 MiB of a kernel image in pages; `holes` are not mapped."""

    def __init__(self, table: SymbolTable, holes: frozenset[int] = frozenset()) -> None:
        data = bytearray(random.Random(1).randbytes(1 << 16) * 64)
        data[0x5000 : 0x5000 + len(DECOY)] = DECOY
        blob = table.blob()
        start = min(table.addresses.values()) - IMAGE
        data[start : start + len(blob)] = blob
        self.data, self.holes = bytes(data), holes

    def read(self, vaddr: int, size: int) -> bytes:
        at = vaddr - IMAGE
        pages = range(at >> 12, (at + size + 4095) >> 12)
        if not 0 <= at <= len(self.data) - size or self.holes.intersection(pages):
            raise VmcoreError("not mapped")
        return self.data[at : at + size]


@pytest.mark.parametrize("count", [300, 513, 700])
def test_the_table_is_found_among_other_data(count: int) -> None:
    symbols = SYMBOLS[:count]
    table = SymbolTable(symbols, IMAGE + AT, old=True)
    image = Image(table, holes=frozenset({0x7, 0x300}))
    where = find_tables(image, IMAGE, IMAGE + (4 << 20))
    found = Kallsyms(image, where, {"_stext": IMAGE}, ["function_1", f"function_{count - 1}"])
    assert where.names == table.addresses["names"]
    assert found.symbols[f"function_{count - 1}"] == IMAGE + 16 * (count - 1)


def test_no_table_is_said() -> None:
    image = Image(SymbolTable(SYMBOLS, IMAGE + AT, old=True))
    with pytest.raises(VmcoreError, match="no symbol table"):
        find_tables(image, IMAGE, IMAGE + (1 << 20))


@settings(max_examples=25)
@given(st.data())
def test_a_damaged_table_ends(data: st.DataObject) -> None:
    table = SymbolTable(SYMBOLS, IMAGE + AT, old=True)
    image = Image(table)
    damaged = bytearray(image.data)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(AT, AT + len(table.blob()) - 1))] = data.draw(st.integers(0, 255))
    image.data = bytes(damaged)
    with contextlib.suppress(VmcoreError):
        Kallsyms(image, find_tables(image, IMAGE, IMAGE + (4 << 20)), {"_stext": IMAGE}, ["function_1"])
