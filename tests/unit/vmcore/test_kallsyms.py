# SPDX-License-Identifier: GPL-2.0-or-later
"""Names are found in the compressed symbol table, however the kernel codes its addresses."""

from __future__ import annotations

import contextlib

import pytest
from fake_types import SymbolTable
from hypothesis import given
from hypothesis import strategies as st

from kdumpd.errors import VmcoreError
from kdumpd.vmcore.kallsyms import Kallsyms, Tables
from kdumpd.vmcore.kallsyms_names import Names
from kdumpd.vmcore.vmcoreinfo import parse_vmcoreinfo

TEXT = 0xFFFFFFFF81000000
BASE = 0xFFFFFFFF82000000
LONG = "a_name_" * 30
SYMBOLS = [
    ("cpu_number", "A", 0x19160),
    ("_stext", "T", TEXT),
    ("init_task", "D", TEXT + 0x1000),
    ("__start_BTF", "r", TEXT + 0x2000),
    (LONG, "t", TEXT + 0x3000),
    ("init_uts_ns", "D", TEXT + 0x4000),
    ("twice", "t", TEXT + 0x5000),
    ("twice", "t", TEXT + 0x6000),
    *((f"filler_{number}", "t", TEXT + 0x10000 + 16 * number) for number in range(3000)),
]
KNOWN = {"_stext": TEXT, "init_uts_ns": TEXT + 0x4000}


class Memory:
    def __init__(self, blob: bytes) -> None:
        self.blob = blob

    def read(self, vaddr: int, size: int) -> bytes:
        at = vaddr - BASE
        if not 0 <= at <= len(self.blob) - size:
            raise VmcoreError("not mapped")
        return self.blob[at : at + size]


def read(table: SymbolTable, blob: bytes | None = None, known: dict[str, int] = KNOWN) -> Kallsyms:
    where = Tables.of(parse_vmcoreinfo("\n".join(table.keys()).encode()))
    wanted = ["init_task", "__start_BTF", LONG, "twice", "cpu_number", "nothing", "filler_2999", ""]
    return Kallsyms(Memory(table.blob() if blob is None else blob), where, known, wanted)


@pytest.mark.parametrize("coding", ["per-cpu", "plain", "place"])
def test_symbols_have_their_addresses(coding: str) -> None:
    symbols = SYMBOLS if coding == "per-cpu" else SYMBOLS[1:]
    found = read(SymbolTable(symbols, BASE, coding=coding)).symbols
    expected = {name: address for name, _, address in reversed(symbols) if not name.startswith("filler")}
    assert found == {**expected, "filler_2999": TEXT + 0x10000 + 16 * 2999}


@pytest.mark.parametrize("count", [255, 256, 257, 512, 513, 3000])
def test_markers_are_a_short_cut_and_nothing_more(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    table = SymbolTable(SYMBOLS[:count], BASE)
    with monkeypatch.context() as without:
        without.delattr(Names, "_one_by_one")
        found = read(table).symbols
    blob = bytearray(table.blob())
    at = table.addresses["markers"] - BASE
    for value in (1, 255):  # one that contradicts the names, and one that lies behind them
        blob[at + 4 * (-(-count // 256) - 1)] ^= value
        assert read(table, bytes(blob)).symbols == found
    assert len(found) == 7


def test_a_table_that_contradicts_vmcoreinfo_is_not_believed() -> None:
    with pytest.raises(VmcoreError, match="contradicts"):
        read(SymbolTable(SYMBOLS, BASE), known={"_stext": TEXT + 0x100})
    with pytest.raises(VmcoreError, match="none of the symbols"):
        read(SymbolTable(SYMBOLS, BASE), known={"_text": TEXT})


def test_a_missing_key_is_named() -> None:
    with pytest.raises(VmcoreError, match=r"SYMBOL\(kallsyms_names\)"):
        Tables.of(parse_vmcoreinfo(b""))


@given(st.data())
def test_damage_never_does_more_than_hide_symbols(data: st.DataObject) -> None:
    table = SymbolTable(SYMBOLS[:8], BASE)
    blob = bytearray(table.blob())
    for _ in range(data.draw(st.integers(1, 8))):
        blob[data.draw(st.integers(0, len(blob) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(VmcoreError):
        read(table, bytes(blob))
