# SPDX-License-Identifier: GPL-2.0-or-later
"""Small BTF blobs and symbol tables, written as pahole(1) and the kernel's scripts/kallsyms.c lay them out."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence

INT, PTR, ARRAY, STRUCT, UNION, ENUM, TYPEDEF, CONST, ENUM64 = 1, 2, 3, 4, 5, 6, 8, 10, 19


class Types:
    """Add types in order; each method returns the id of the new one."""

    def __init__(self) -> None:
        self.strings = b"\0"
        self.types = b""
        self.count = 0

    def _name(self, name: str) -> int:
        if not name:
            return 0
        found = self.strings.find(b"\0" + name.encode() + b"\0")
        if found < 0:
            found = len(self.strings) - 1
            self.strings += name.encode() + b"\0"
        return found + 1

    def _add(self, name: str, kind: int, count: int, size: int, rest: bytes = b"", flag: int = 0) -> int:
        self.types += struct.pack("<III", self._name(name), flag << 31 | kind << 24 | count, size) + rest
        self.count += 1
        return self.count

    def integer(self, name: str, size: int) -> int:
        return self._add(name, INT, 0, size, struct.pack("<I", size * 8))

    def pointer(self, to: int) -> int:
        return self._add("", PTR, 0, to)

    def alias(self, name: str, to: int) -> int:
        return self._add(name, TYPEDEF if name else CONST, 0, to)

    def array(self, of: int, count: int) -> int:
        return self._add("", ARRAY, 0, 0, struct.pack("<III", of, of, count))

    def struct(self, name: str, size: int, members: Sequence[tuple[str, int, int]], *, kind: int = STRUCT) -> int:
        """`members` are (name, type, offset in bits)."""
        rest = b"".join(struct.pack("<III", self._name(member), of, bits) for member, of, bits in members)
        return self._add(name, kind, len(members), size, rest)

    def enum(self, name: str, values: Mapping[str, int]) -> int:
        rest = b"".join(struct.pack("<Ii", self._name(each), value) for each, value in values.items())
        return self._add(name, ENUM, len(values), 4, rest)

    def enum64(self, name: str, values: Mapping[str, int]) -> int:
        rest = b"".join(struct.pack("<IQ", self._name(each), value) for each, value in values.items())
        return self._add(name, ENUM64, len(values), 8, rest)

    def blob(self) -> bytes:
        head = struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(self.types), len(self.types), len(self.strings))
        return head + self.types + self.strings


class SymbolTable:
    """kallsyms for `symbols` (name, type character, address), at virtual address `base`: see `parts` and `keys`.

    `coding` is how addresses are kept: "per-cpu", "plain" or "place". The order of the parts is that of 6.2, or that
    of 5.10 with `old`.
    """

    def __init__(
        self, symbols: Sequence[tuple[str, str, int]], base: int, *, coding: str = "per-cpu", old: bool = False
    ) -> None:
        symbols = sorted(symbols, key=lambda each: each[2])
        # Tokens: each character for itself, and a few that stand for more, as the compressor makes them.
        tokens = [bytes([code]) for code in range(256)]
        tokens[0], tokens[1], tokens[2], tokens[3] = b"xyz", b"init_", b"__st", b"_task"
        names = b""
        markers: list[int] = []
        for index, (name, kind, _) in enumerate(symbols):
            if index % 256 == 0:
                markers.append(len(names))
            text = (kind + name).encode()
            for code in (1, 2, 3):
                text = text.replace(tokens[code], bytes([code]))
            length = bytes([len(text)]) if len(text) < 128 else bytes([len(text) & 0x7F | 0x80, len(text) >> 7])
            names += length + text
        relative = min((address for _, _, address in symbols if address >> 63), default=0)
        parts = {
            "offsets": bytes(4 * len(symbols)),
            "relative_base": struct.pack("<Q", relative),
            "num_syms": struct.pack("<I", len(symbols)),
            "names": names,
            "markers": struct.pack(f"<{len(markers)}I", *markers),
            "token_table": b"".join(token + b"\0" for token in tokens),
            "token_index": b"".join(
                struct.pack("<H", sum(len(token) + 1 for token in tokens[:code])) for code in range(256)
            ),
        }
        order = list(parts) if old else [*list(parts)[2:], *list(parts)[:2]]
        self.parts = {part: parts[part] for part in order}
        self.addresses: dict[str, int] = {}
        at = base
        for part, data in self.parts.items():
            self.addresses[part] = at
            at += -(-len(data) // 8) * 8
        offsets = []
        for index, (_, _, address) in enumerate(symbols):
            if coding == "place":
                offsets.append(address - (self.addresses["offsets"] + 4 * index))
            elif coding == "plain":
                offsets.append(address - relative)
            else:
                offsets.append(address if not address >> 63 else relative - 1 - address)
        self.parts["offsets"] = struct.pack(f"<{len(offsets)}i", *offsets)
        if coding == "place":
            del self.addresses["relative_base"]

    def blob(self) -> bytes:
        """All parts, as they lie in memory from `base` on."""
        return b"".join(data.ljust(-(-len(data) // 8) * 8, b"\0") for data in self.parts.values())

    def keys(self) -> list[str]:
        """The lines of VMCOREINFO."""
        named = {part: address for part, address in self.addresses.items() if part != "markers"}
        return [f"SYMBOL(kallsyms_{part})={address:x}" for part, address in named.items()]
