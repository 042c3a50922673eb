# SPDX-License-Identifier: GPL-2.0-or-later
"""Flattened device trees: read, changed, written again (Devicetree Specification v0.4, chapter 5).

Knows the format and the few properties of /chosen and /memory that a boot loader sets; nothing of any machine.
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Iterator, Sequence

from kdumpd.errors import LoadError

_MAGIC = 0xD00DFEED
_HEADER = struct.Struct(">10I")
_RESERVATION = struct.Struct(">QQ")
_BEGIN_NODE, _END_NODE, _PROP, _NOP, _END = 1, 2, 3, 4, 9
_VERSION, _COMPATIBLE_VERSION = 17, 16
_DEEPEST = 64
# The kernel maps no more of it (arch/arm64/include/asm/boot.h, MAX_FDT_SIZE).
LARGEST_BYTES = 2 << 20


@dataclasses.dataclass(slots=True)
class Node:
    """A node: its properties as bytes, its children, both in the order of the file. The root's name is empty."""

    name: str
    properties: dict[str, bytes] = dataclasses.field(default_factory=dict)
    children: list[Node] = dataclasses.field(default_factory=list)

    def child(self, name: str) -> Node:
        """The child of that name, made if there is none."""
        found = next((node for node in self.children if node.name == name), None)
        if found is None:
            found = Node(name)
            self.children.append(found)
        return found

    def text(self, name: str) -> str | None:
        """A property that is text, or the first of several; None when it is absent."""
        value = self.properties.get(name)
        return None if value is None else value.split(b"\0", 1)[0].decode(errors="replace")

    def set_text(self, name: str, value: str) -> None:
        """Sets a property to text."""
        self.properties[name] = value.encode() + b"\0"


@dataclasses.dataclass(slots=True, kw_only=True)
class DeviceTree:
    """`reservations` are (address, size) in bytes, of memory that nobody may use; `boot_cpu` is a physical id."""

    root: Node
    reservations: list[tuple[int, int]] = dataclasses.field(default_factory=list)
    boot_cpu: int = 0

    def cells(self) -> tuple[int, int]:
        """How many 32-bit cells an address and a size take at the root (2 and 1 where it does not say)."""
        counts = []
        for name, default in (("#address-cells", 2), ("#size-cells", 1)):
            value = self.root.properties.get(name)
            counts.append(int.from_bytes(value, "big") if value is not None and len(value) == 4 else default)
        return counts[0], counts[1]

    def encode_ranges(self, ranges: Sequence[tuple[int, int]]) -> bytes:
        """(address, size) pairs as a property of a child of the root. Raises LoadError when one does not fit."""
        address_cells, size_cells = self.cells()
        try:
            return b"".join(
                address.to_bytes(4 * address_cells, "big") + size.to_bytes(4 * size_cells, "big")
                for address, size in ranges
            )
        except OverflowError as error:
            raise LoadError("the device tree has no room for addresses of this machine (#address-cells)") from error

    def memory(self) -> list[tuple[int, int]]:
        """(address, size) of all memory that the tree speaks of."""
        address_cells, size_cells = self.cells()
        step = 4 * (address_cells + size_cells)
        found = []
        for node in self.memory_nodes():
            value = node.properties.get("reg", b"")
            for at in range(0, len(value) - step + 1, step) if step else ():
                middle = at + 4 * address_cells
                address, size = (int.from_bytes(part, "big") for part in (value[at:middle], value[middle : at + step]))
                found.append((address, size))
        return found

    def memory_nodes(self) -> list[Node]:
        """The nodes for memory, which are told by their type."""
        return [node for node in self.root.children if node.text("device_type") == "memory"]

    def set_memory(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Says that the machine has exactly this memory, (address, size) in bytes."""
        for node in self.memory_nodes():
            self.root.children.remove(node)
        node = Node(f"memory@{ranges[0][0]:x}")
        node.set_text("device_type", "memory")
        node.properties["reg"] = self.encode_ranges(ranges)
        self.root.children.append(node)

    def to_bytes(self) -> bytes:
        """The file. Raises LoadError when it is larger than a kernel takes."""
        strings: dict[str, int] = {}
        structure = b"".join((*_node_words(self.root, strings), struct.pack(">I", _END)))
        texts = b"".join(name.encode() + b"\0" for name in strings)
        reserved = b"".join(_RESERVATION.pack(*pair) for pair in (*self.reservations, (0, 0)))
        at_reserved = -(-_HEADER.size // 8) * 8
        at_structure = at_reserved + len(reserved)
        at_strings = at_structure + len(structure)
        total = -(-(at_strings + len(texts)) // 8) * 8
        if total > LARGEST_BYTES:
            raise LoadError(f"the device tree takes {total} bytes, a kernel reads {LARGEST_BYTES} of it")
        header = _HEADER.pack(
            _MAGIC, total, at_structure, at_strings, at_reserved, _VERSION, _COMPATIBLE_VERSION, self.boot_cpu,
            len(texts), len(structure),
        )  # fmt: skip
        return (header.ljust(at_reserved, b"\0") + reserved + structure + texts).ljust(total, b"\0")


def parse_fdt(data: bytes, name: str) -> DeviceTree:
    """The tree in `data`. Raises LoadError naming `name` when it is none, cut short or damaged."""
    try:
        header = _HEADER.unpack_from(data)
        if header[0] != _MAGIC:
            raise ValueError("it does not begin like one")
        _, total, at_structure, at_strings, at_reserved, _, compatible, boot_cpu, strings_bytes, structure_bytes = (
            header
        )
        if compatible > _VERSION or compatible < _COMPATIBLE_VERSION:
            raise ValueError(f"its format is {compatible}, not {_COMPATIBLE_VERSION} or {_VERSION}")
        if total > len(data):
            raise ValueError(f"it is cut short: {len(data)} of {total} bytes")
        if at_structure + structure_bytes > total or at_strings + strings_bytes > total:
            raise ValueError("it points outside of itself")
        strings = data[at_strings : at_strings + strings_bytes]
        reader = _Reader(data[at_structure : at_structure + structure_bytes], strings)
        return DeviceTree(root=reader.tree(), reservations=list(_reservations(data, at_reserved)), boot_cpu=boot_cpu)
    except (struct.error, ValueError, IndexError) as error:
        raise LoadError(
            f"{name} is not a device tree that can be used: {error}", hint="name the .dtb file the board boots with"
        ) from error


def _reservations(data: bytes, at: int) -> Iterator[tuple[int, int]]:
    while True:
        address, size = _RESERVATION.unpack_from(data, at)
        if (address, size) == (0, 0):
            return
        yield address, size
        at += _RESERVATION.size


class _Reader:
    def __init__(self, structure: bytes, strings: bytes) -> None:
        self._data = structure
        self._strings = strings
        self._at = 0

    def tree(self) -> Node:
        if self._token() != _BEGIN_NODE:
            raise ValueError("it has no root")
        root = self._node(0)
        if self._token() != _END:
            raise ValueError("it goes on behind its root")
        return root

    def _word(self) -> int:
        (word,) = struct.unpack_from(">I", self._data, self._at)
        self._at += 4
        return int(word)

    def _token(self) -> int:
        while (token := self._word()) == _NOP:
            pass
        return token

    def _node(self, depth: int) -> Node:
        if depth > _DEEPEST:
            raise ValueError("its nodes are nested too deep")
        end = self._data.index(b"\0", self._at)
        node = Node(self._data[self._at : end].decode("ascii"))
        self._at = _aligned(end + 1)
        while True:
            token = self._token()
            if token == _PROP:
                size, at_name = self._word(), self._word()
                if self._at + size > len(self._data):
                    raise ValueError("a property reaches beyond its end")
                name = self._strings[at_name : self._strings.index(b"\0", at_name)].decode("ascii")
                node.properties[name] = self._data[self._at : self._at + size]
                self._at = _aligned(self._at + size)
            elif token == _BEGIN_NODE:
                node.children.append(self._node(depth + 1))
            elif token == _END_NODE:
                return node
            else:
                raise ValueError(f"it has an unknown mark, {token:#x}")


def _node_words(node: Node, strings: dict[str, int]) -> Iterator[bytes]:
    yield struct.pack(">I", _BEGIN_NODE) + _padded(node.name.encode() + b"\0")
    for name, value in node.properties.items():
        if name not in strings:
            strings[name] = _end(strings)
        yield struct.pack(">III", _PROP, len(value), strings[name]) + _padded(value)
    for child in node.children:
        yield from _node_words(child, strings)
    yield struct.pack(">I", _END_NODE)


def _end(strings: dict[str, int]) -> int:
    """Where the next text goes: behind the last one."""
    if not strings:
        return 0
    last, at = next(reversed(strings.items()))
    return at + len(last.encode()) + 1


def _aligned(at: int) -> int:
    return -(-at // 4) * 4


def _padded(data: bytes) -> bytes:
    return data.ljust(_aligned(len(data)), b"\0")
