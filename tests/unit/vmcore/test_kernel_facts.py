# SPDX-License-Identifier: GPL-2.0-or-later
"""Kernel facts: stored ones only for the very kernel, those in memory for any, and a note where there are none."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from fake_types import SymbolTable, Types

from kdumpd.errors import VmcoreError
from kdumpd.vmcore.btf import Btf
from kdumpd.vmcore.kernel_facts import KernelFacts, facts_of_memory, find_facts, gather, parse_facts, stored_facts
from kdumpd.vmcore.vmcoreinfo import Vmcoreinfo, parse_vmcoreinfo

TEXT = 0xFFFFFFFF81000000
BTF_AT = 0xFFFFFFFF81800000
TABLE_AT = 0xFFFFFFFF82000000


def types() -> bytes:
    types = Types()
    long = types.integer("long", 8)
    types.struct("page", 64, [("flags", long, 0), ("mapping", long, 192)])
    types.enum("pagetype", {"PGTY_slab": 0xF5})
    return types.blob()


class Memory:
    """A dead kernel of two blobs."""

    def __init__(self) -> None:
        blob = types()
        self.table = SymbolTable(
            [
                ("__per_cpu_start", "A", 0),
                ("_stext", "T", TEXT),
                ("init_task", "D", TEXT + 0x1000),
                ("__start_BTF", "r", BTF_AT),
                ("__stop_BTF", "r", BTF_AT + len(blob)),
            ],
            TABLE_AT,
        )
        self.blobs = {BTF_AT: blob, TABLE_AT: self.table.blob() + bytes(1 << 16)}

    def read(self, vaddr: int, size: int) -> bytes:
        for start, blob in self.blobs.items():
            if start <= vaddr and vaddr + size <= start + len(blob):
                return blob[vaddr - start :][:size]
        raise VmcoreError("not mapped")

    def info(self, *more: str) -> Vmcoreinfo:
        lines = ["OSRELEASE=6.1.0-x", "BUILD-ID=abcd", f"SYMBOL(_stext)={TEXT:x}", *self.table.keys(), *more]
        return parse_vmcoreinfo("\n".join(lines).encode())


def test_facts_of_memory() -> None:
    memory = Memory()
    facts = facts_of_memory(memory, memory.info())
    assert facts.offsets == {"page.flags": 0, "page.mapping": 24}
    assert facts.sizes == {"page": 64}
    assert facts.values == {"PGTY_slab": 0xF5}
    assert facts.symbols["init_task"] == 0x1000
    assert facts.absolute == {"__per_cpu_start": 0}


def test_stored_facts_are_the_same_wherever_the_kernel_was_loaded() -> None:
    memory = Memory()
    here = facts_of_memory(memory, memory.info())
    slid = {name: TEXT + 0x5000000 + at for name, at in here.symbols.items()}
    there = gather(
        release=here.release, build_id=here.build_id, btf=Btf(types()), symbols={**slid, **here.absolute}, source="x"
    )
    assert there.to_json() == here.to_json()
    assert parse_facts(here.to_json().encode(), here.source) == here


def test_stored_facts_of_another_kernel_are_not_used(tmp_path: Path) -> None:
    memory = Memory()
    facts = facts_of_memory(memory, memory.info())
    for change, text in (({"release": "6.1.0-y"}, "release 6.1.0-y"), ({"build_id": "dcba"}, "build id dcba")):
        path = tmp_path / "kernel.json"
        path.write_text(dataclasses.replace(facts, **change).to_json())
        with pytest.raises(VmcoreError, match=text):
            stored_facts(path, memory.info())
        notes: list[str] = []
        assert find_facts(memory, memory.info(), notes, path) == facts
        assert len(notes) == 1 and text in notes[0]


def test_stored_facts_save_the_look_into_memory(tmp_path: Path) -> None:
    memory = Memory()
    path = tmp_path / "kernel.json"
    path.write_text(facts_of_memory(memory, memory.info()).to_json())
    memory.blobs.clear()
    notes: list[str] = []
    facts = find_facts(memory, memory.info(), notes, path)
    assert facts is not None and facts.source == str(path) and not notes


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{", '{"version": 1}', '{"version": 2}', "[" * 100000, '{"version": 1, "release": 1, "offsets": 3}'],
)
def test_damaged_stored_facts_are_noted(text: str, tmp_path: Path) -> None:
    path = tmp_path / "kernel.json"
    path.write_text(text)
    memory = Memory()
    notes: list[str] = []
    assert isinstance(find_facts(memory, memory.info(), notes, path), KernelFacts)
    assert len(notes) == 1 and str(path) in notes[0]


def test_no_facts_at_all_is_one_note(tmp_path: Path) -> None:
    notes: list[str] = []
    assert find_facts(Memory(), parse_vmcoreinfo(b""), notes, tmp_path / "none") is None
    assert len(notes) == 1 and "structures are not known" in notes[0]
