# SPDX-License-Identifier: GPL-2.0-or-later
"""kdumpd.host.arm64_boot: where things go, the instructions that start the kernel, the tree it gets."""

from __future__ import annotations

import errno
import itertools
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_fdt import blob

from kdumpd.errors import LoadError
from kdumpd.host.arm64_boot import entry_code, kernel_place, place, prepare_tree
from kdumpd.host.fdt import parse_fdt
from kdumpd.host.reservation import MemoryRange

MIB = 1 << 20
RESERVED = MemoryRange(start=0x6000_0000, last=0x6FFF_FFFF)
RAM = (MemoryRange(start=0x4000_0000, last=0x7FFF_FFFF),)


def run(code: bytes) -> tuple[dict[int, int], int]:
    """Registers and the address jumped to: an arm64 that knows MOVZ, MOVK and BR (Arm ARM, C6.2)."""
    registers: dict[int, int] = {}
    for (word,) in struct.iter_unpack("<I", code):
        shift, value, register = (word >> 21 & 3) * 16, word >> 5 & 0xFFFF, word & 31
        if word >> 23 == 0b110100101:
            registers[register] = value << shift
        elif word >> 23 == 0b111100101:
            registers[register] = registers[register] & ~(0xFFFF << shift) | value << shift
        elif word & 0xFFFFFC1F == 0xD61F0000:
            return registers, registers[word >> 5 & 31]
        else:
            raise AssertionError(f"{word:#x} is another instruction")
    raise AssertionError("it does not jump")


@given(st.integers(0, (1 << 64) - 1), st.integers(0, (1 << 64) - 1))
def test_the_kernel_is_started_by_the_rules(kernel: int, dtb: int) -> None:
    registers, target = run(entry_code(kernel, dtb))
    assert target == kernel
    assert [registers[number] for number in range(4)] == [dtb, 0, 0, 0]


@given(
    st.integers(0, 1 << 20), st.sampled_from([0, 0x80000]), st.integers(1, 64 * MIB), st.integers(1, 64 * MIB),
    st.integers(1, 2 * MIB), st.integers(1, 100_000),
)  # fmt: skip
def test_everything_has_its_place(pages: int, offset: int, kernel: int, initrd: int, dtb: int, core: int) -> None:
    reserved = MemoryRange(start=pages * 4096, last=pages * 4096 + 256 * MIB - 1)
    found = place(reserved, (offset, kernel), initrd, dtb, core)
    assert (found.kernel - offset) % (2 * MIB) == 0
    assert found.dtb // (2 * MIB) == (found.dtb + dtb - 1) // (2 * MIB) or dtb > 2 * MIB
    spans = [(found.kernel, kernel), (found.initrd, initrd), (found.dtb, dtb), (found.core, core), (found.entry, 4096)]
    assert reserved.start <= found.kernel and found.entry + 65536 - 1 <= reserved.last
    for (start, size), (following, _) in itertools.pairwise(spans):
        assert -(-(start + size) // 65536) * 65536 <= following
        assert following % 65536 == 0


def test_what_does_not_fit_gets_a_sentence() -> None:
    with pytest.raises(LoadError, match=r"take 2\d\d of 256 MiB") as caught:
        place(RESERVED, (0, 200 * MIB), 60 * MIB, 4096, 4096)
    assert caught.value.errno == errno.EADDRNOTAVAIL


def test_a_kernel_says_where_it_wants_to_be() -> None:
    assert kernel_place(struct.pack("<IIQQQ", 0, 0, 0x80000, 40 * MIB, 0xA), "Image") == (0x80000, 40 * MIB)
    with pytest.raises(LoadError, match=r"before 3\.17"):
        kernel_place(struct.pack("<IIQQQ", 0, 0, 0x80000, 0, 0), "Image")
    with pytest.raises(LoadError, match="big-endian"):
        kernel_place(struct.pack("<IIQQQ", 0, 0, 0x80000, 40 * MIB, 1), "Image")


def _prepared(data: bytes, usable: MemoryRange = RESERVED) -> dict[str, bytes]:
    tree = parse_fdt(data, "x.dtb")
    chosen = tree.root.child("chosen")
    chosen.properties["kaslr-seed"] = bytes(8)
    prepare_tree(
        tree, cmdline="a b=c", initrd=(0x6300_0000, 4097), core=(0x6500_0000, 800), usable=[usable], ram=RAM,
        seed=b"s" * 128,
    )  # fmt: skip
    again = parse_fdt(tree.to_bytes(), "again")
    assert again.memory() == [(0x4000_0000, 1 << 30)]
    return again.root.child("chosen").properties


def test_the_tree_says_what_the_capture_kernel_has_to_know() -> None:
    assert _prepared(blob()) == {
        "bootargs": b"a b=c\0",
        "linux,initrd-start": struct.pack(">Q", 0x6300_0000),
        "linux,initrd-end": struct.pack(">Q", 0x6300_1001),
        "linux,elfcorehdr": struct.pack(">QQ", 0x6500_0000, 800),
        "linux,usable-memory-range": struct.pack(">QQ", 0x6000_0000, 256 * MIB),
        "rng-seed": b"s" * 128,
    }


def test_a_tree_that_knows_no_memory_gets_the_machines() -> None:
    """Boot loaders write the memory into the tree; the file that comes with a kernel has none, or a placeholder."""
    tree = parse_fdt(blob(), "x.dtb")
    tree.memory_nodes()[0].properties["reg"] = struct.pack(">QQ", 0x4000_0000, 0)
    _prepared(tree.to_bytes())
    tree.root.children.remove(tree.memory_nodes()[0])
    _prepared(tree.to_bytes())
