# SPDX-License-Identifier: GPL-2.0-or-later
"""kdumpd.host.fdt: device trees as boot loaders hand them over, whole and broken."""

from __future__ import annotations

import contextlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdumpd.errors import LoadError
from kdumpd.host.fdt import LARGEST_BYTES, DeviceTree, Node, parse_fdt


def _prop(offset: int, value: bytes) -> bytes:
    return struct.pack(">III", 3, len(value), offset) + value + bytes(-len(value) % 4)


def _begin(name: bytes) -> bytes:
    return struct.pack(">I", 1) + name + bytes(4 - len(name) % 4)


STRINGS = b"#address-cells\0#size-cells\0device_type\0reg\0bootargs\0"
_END_NODE = struct.pack(">I", 2)
_NOP = struct.pack(">I", 4)


def blob(*, address_cells: int = 2, magic: int = 0xD00DFEED, compatible: int = 16) -> bytes:
    """A tree put together by hand: memory of 1 GiB at 0x40000000, a command line, a reservation, and NOPs."""
    cells = ">QQ" if address_cells == 2 else ">IQ"
    structure = b"".join([
        _begin(b""), _prop(0, struct.pack(">I", address_cells)), _NOP, _prop(15, struct.pack(">I", 2)),
        _begin(b"memory@40000000"), _prop(27, b"memory\0"), _prop(39, struct.pack(cells, 0x40000000, 1 << 30)),
        _END_NODE, _begin(b"chosen"), _prop(43, b"quiet splash\0"), _END_NODE, _NOP, _END_NODE, struct.pack(">I", 9),
    ])  # fmt: skip
    reserved = struct.pack(">QQQQ", 0x7FF00000, 0x1000, 0, 0)
    at_structure = 40 + len(reserved)
    at_strings = at_structure + len(structure)
    total = at_strings + len(STRINGS)
    header = struct.pack(
        ">10I", magic, total, at_structure, at_strings, 40, 17, compatible, 3, len(STRINGS), len(structure)
    )
    return header + reserved + structure + STRINGS


def test_a_tree_is_read() -> None:
    tree = parse_fdt(blob(), "x.dtb")
    assert tree.cells() == (2, 2)
    assert tree.memory() == [(0x40000000, 1 << 30)]
    assert tree.root.child("chosen").text("bootargs") == "quiet splash"
    assert tree.reservations == [(0x7FF00000, 0x1000)]
    assert tree.boot_cpu == 3


def test_what_is_written_is_read_the_same() -> None:
    tree = parse_fdt(blob(), "x.dtb")
    assert parse_fdt(tree.to_bytes(), "again") == tree
    assert len(tree.to_bytes()) % 8 == 0


def test_memory_is_replaced_whole() -> None:
    tree = parse_fdt(blob(), "x.dtb")
    tree.set_memory([(0x80000000, 0x10000000), (0x1_00000000, 0x20000000)])
    again = parse_fdt(tree.to_bytes(), "again")
    assert again.memory() == [(0x80000000, 0x10000000), (0x1_00000000, 0x20000000)]
    assert len(again.memory_nodes()) == 1


def test_addresses_have_the_cells_of_the_root() -> None:
    tree = parse_fdt(blob(address_cells=1), "x.dtb")
    assert tree.memory() == [(0x40000000, 1 << 30)]
    assert tree.encode_ranges([(0x40000000, 2)]) == bytes.fromhex("400000000000000000000002")
    with pytest.raises(LoadError, match="no room for addresses"):
        tree.encode_ranges([(1 << 32, 2)])


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "is not a device tree"),
        (b"hello, I am no device tree at all, not the least bit", "does not begin like one"),
        (blob()[:200], "cut short"),
        (blob(magic=0xEDFE0DD0), "does not begin like one"),
        (blob(compatible=18), "its format is 18"),
    ],
)
def test_what_is_none_gets_a_sentence(data: bytes, words: str) -> None:
    with pytest.raises(LoadError, match=words) as caught:
        parse_fdt(data, "x.dtb")
    assert "x.dtb" in caught.value.sentence
    assert caught.value.hint == "name the .dtb file the board boots with"


@given(st.data())
def test_damage_never_ends_in_anything_else(data: st.DataObject) -> None:
    broken = bytearray(blob())
    for _ in range(data.draw(st.integers(1, 4))):
        broken[data.draw(st.integers(0, len(broken) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(LoadError):
        parse_fdt(bytes(broken), "x.dtb")


def test_a_tree_too_large_for_a_kernel_is_refused() -> None:
    tree = DeviceTree(root=Node("", {"ballast": bytes(LARGEST_BYTES)}))
    with pytest.raises(LoadError, match="a kernel reads"):
        tree.to_bytes()


def test_endless_nesting_is_refused() -> None:
    root = node = Node("")
    for _ in range(100):
        node = node.child("x")
    with pytest.raises(LoadError, match="nested too deep"):
        parse_fdt(DeviceTree(root=root).to_bytes(), "x.dtb")
