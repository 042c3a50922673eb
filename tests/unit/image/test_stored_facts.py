# SPDX-License-Identifier: GPL-2.0-or-later
"""The facts that an image carries: of the running kernel only, and the same after each boot."""

from __future__ import annotations

import struct
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "vmcore"))

from fake_types import Types

from kdumpd.image import kernel_facts
from kdumpd.image.kernel_facts import running_kernel_facts
from kdumpd.vmcore.kernel_facts import STORED

RELEASE = "6.1.0-x"


def running(root: Path, *, base: int = 0xFFFFFFFF81000000, btf: bool = True) -> Path:
    """A /proc and /sys of a kernel that was loaded at `base`."""
    for folder in ("proc/sys/kernel", "sys/kernel/btf"):
        (root / folder).mkdir(parents=True)
    (root / "proc/sys/kernel/osrelease").write_text(f"{RELEASE}\n")
    types = Types()
    types.struct("page", 64, [("flags", types.integer("long", 8), 0)])
    if btf:
        (root / "sys/kernel/btf/vmlinux").write_bytes(types.blob())
    (root / "sys/kernel/notes").write_bytes(struct.pack("<III", 4, 4, 3) + b"GNU\0" + b"\xab\xcd\xef\x01")
    (root / "proc/kallsyms").write_text(
        f"0000000000000000 A __per_cpu_start\n{base:016x} T _stext\n{base + 0x1000 if base else 0:016x} D init_task\n"
        f"ffffffffc0000000 t _stext\t[module]\n"
    )
    return root


def test_facts_are_the_same_after_each_boot(tmp_path: Path) -> None:
    first = running_kernel_facts(RELEASE, running(tmp_path / "first"))
    second = running_kernel_facts(RELEASE, running(tmp_path / "second", base=0xFFFFFFFFA3000000))
    assert first is not None and second is not None
    assert first.to_json() == second.to_json()
    assert (first.build_id, first.offsets, first.sizes) == ("abcdef01", {"page.flags": 0}, {"page": 64})
    assert (first.symbols, first.absolute) == ({"_stext": 0, "init_task": 0x1000}, {"__per_cpu_start": 0})


def test_the_collector_looks_where_it_is_put() -> None:
    assert str(STORED).lstrip("/") == kernel_facts.PATH


def test_another_kernel_or_one_without_types_has_none(tmp_path: Path) -> None:
    root = running(tmp_path / "root", btf=False)
    assert running_kernel_facts(RELEASE, root) is None
    assert running_kernel_facts("6.1.0-y", root) is None
    assert running_kernel_facts(RELEASE, tmp_path / "nowhere") is None


def test_hidden_addresses_are_left_out(tmp_path: Path) -> None:
    facts = running_kernel_facts(RELEASE, running(tmp_path / "root", base=0))
    assert facts is not None
    assert facts.offsets and not facts.symbols and not facts.absolute


def test_a_line_of_another_shape_hides_no_symbol(tmp_path: Path) -> None:
    root = running(tmp_path / "root")
    table = root / "proc/kallsyms"
    lines = table.read_text().splitlines(keepends=True)
    # Also beyond what is read at a time.
    many = [f"ffffffff82{at:06x} t name_{at}\n" for at in range(20_000)]
    table.write_text(
        "".join([*lines[:2], "ffffffff81000500 t\n", *many, *lines[2:], "ffffffffc0000010 t jiffies\t[module]\n"])
    )
    facts = running_kernel_facts(RELEASE, root)
    assert facts is not None
    assert (facts.symbols, facts.absolute) == ({"_stext": 0, "init_task": 0x1000}, {"__per_cpu_start": 0})
