# SPDX-License-Identifier: GPL-2.0-or-later
"""BTF: the kernel's own type information (linux: Documentation/bpf/btf.rst, include/uapi/linux/btf.h).

Only what tells where a member lies, how large a type is and what an enumerator is worth. The blob is 5 MB with over
100,000 types: one loop finds where each begins, everything else looks at the few that are asked for.
"""

from __future__ import annotations

import array
import functools
import struct

import numpy as np
import numpy.typing as npt

from kdumpd.errors import VmcoreError
from kdumpd.vmcore.arrays import ints

_HEADER = struct.Struct("<HBBIIIII")
_MAGIC = 0xEB9F
_STRUCT, _UNION, _ENUM, _ENUM64 = 4, 5, 6, 19
_ARRAY, _TYPEDEF = 3, 8
_ALIASES = frozenset((_TYPEDEF, 9, 10, 11, 18))  # typedef, volatile, const, restrict, type tag
_COMPOUND = frozenset((_STRUCT, _UNION))

# Words that follow the three of each type: a fixed number, and a number for each of its vlen entries.
_KINDS = 128
_FIXED = [0, 1, 0, 3, *[0] * 10, 1, 0, 0, 1, *[0] * (_KINDS - 18)]
_EACH = [0] * _KINDS
for _kind, _words in ((_STRUCT, 3), (_UNION, 3), (_ENUM, 2), (13, 2), (15, 3), (_ENUM64, 3)):
    _EACH[_kind] = _words
_LAST_KIND = _ENUM64

MAX_BLOB = 64 << 20
_MAX_MEMBERS = 1 << 12
_MAX_DEPTH = 16  # of typedefs and qualifiers
_MAX_UNNAMED = 64


def blob_size(head: bytes) -> int:
    """How long the BTF is that starts with `head`, by its own header. Raises VmcoreError."""
    if len(head) < _HEADER.size:
        raise VmcoreError("the type information (BTF) is shorter than its header")
    magic, version, _, header, type_at, type_size, string_at, string_size = _HEADER.unpack_from(head)
    size: int = header + max(type_at + type_size, string_at + string_size)
    if magic != _MAGIC or version != 1 or not _HEADER.size <= header < 256 or size > MAX_BLOB:
        raise VmcoreError("the type information (BTF) has no usable header")
    return size


class Btf:
    """The types of one kernel. Answers None for what it does not know; raises VmcoreError only when made."""

    def __init__(self, blob: bytes | memoryview) -> None:
        """`blob` is all of the section .BTF, or what /sys/kernel/btf/vmlinux holds."""
        size = blob_size(bytes(blob[: _HEADER.size]))
        if size > len(blob):
            raise VmcoreError(f"the type information (BTF) ends after {len(blob)} of {size} bytes")
        _, _, _, header, type_at, type_size, string_at, string_size = _HEADER.unpack_from(blob)
        if type_at % 4 or header % 4:
            raise VmcoreError("the type information (BTF) is not aligned")
        types = memoryview(blob)[header + type_at :][: type_size & ~3]
        self._words = np.frombuffer(types, dtype="<u4")
        self._strings = bytes(memoryview(blob)[header + string_at :][:string_size])
        self._starts = _starts(memoryview(types).cast("I"))

    # Types by name

    def size_of(self, name: str) -> int | None:
        """sizeof(struct `name`), or of the union of that name."""
        at = self._compound(name)
        return None if at is None else int(self._words[at + 2])

    def offset_of(self, path: str) -> int | None:
        """Bytes from the start of a struct to a member: "struct.member", "struct.member.member".

        Members of unnamed structs and unions count as those of the struct around them.
        """
        name, _, rest = path.partition(".")
        at = self._compound(name)
        total = 0
        for member in rest.split("."):
            if at is None:
                return None
            found = self._member(at, member.encode(), set())
            if found is None:
                return None
            offset, type_id = found
            total += offset
            at = self._resolved(type_id)
        return total

    def enumerator(self, name: str) -> int | None:
        """The value of an enumerator, in whichever enum it is; None when there are several with different values."""
        off = self._string(name)
        if off is None:
            return None
        values: set[int] = set()
        for at in ints(np.flatnonzero(self._words == off)):
            index = int(np.searchsorted(self._starts, at, side="right")) - 1
            if index < 0:
                continue
            start = int(self._starts[index])
            info = int(self._words[start + 1])
            kind = info >> 24 & _KINDS - 1
            each = _EACH[kind]
            if kind in (_ENUM, _ENUM64) and at >= start + 3 and (at - start - 3) % each == 0:
                value = int(self._words[at + 1])
                if kind == _ENUM64:
                    value |= int(self._words[at + 2]) << 32
                values.add(value)
        return values.pop() if len(values) == 1 else None

    # Inside

    def _string(self, name: str) -> int | None:
        at = self._strings.find(b"\0" + name.encode() + b"\0")
        return None if at < 0 else at + 1

    @functools.cached_property
    def _compounds(self) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.int64]]:
        """Name offsets of all structs and unions that have members, ascending, and where each of them starts."""
        starts = self._starts
        info = self._words[starts + 1]
        kinds = info >> 24 & _KINDS - 1
        names = self._words[starts]
        wanted = np.flatnonzero(((kinds == _STRUCT) | (kinds == _UNION)) & (names != 0) & (info & 0xFFFFFF != 0))
        order = np.argsort(names[wanted], kind="stable")
        return names[wanted][order], starts[wanted][order]

    def _compound(self, name: str) -> int | None:
        off = self._string(name)
        if off is None:
            return None
        names, starts = self._compounds
        index = int(np.searchsorted(names, off))
        return int(starts[index]) if index < len(names) and int(names[index]) == off else None

    def _start(self, type_id: int) -> int | None:
        # Type 0 is void and has no record.
        return int(self._starts[type_id - 1]) if 0 < type_id <= len(self._starts) else None

    def _resolved(self, type_id: int) -> int | None:
        """The struct or union behind typedefs, qualifiers and arrays."""
        for _ in range(_MAX_DEPTH):
            at = self._start(type_id)
            if at is None:
                return None
            kind = int(self._words[at + 1]) >> 24 & _KINDS - 1
            if kind in _COMPOUND:
                return at
            if kind == _ARRAY:
                type_id = int(self._words[at + 3])
            elif kind in _ALIASES:
                type_id = int(self._words[at + 2])
            else:
                return None
        return None

    def _member(self, at: int, name: bytes, seen: set[int]) -> tuple[int, int] | None:
        """Offset in bytes and type of a member of the struct that starts at word `at`; none of `seen` is looked at."""
        seen.add(at)
        info = int(self._words[at + 1])
        count = min(info & 0xFFFFFF, _MAX_MEMBERS)
        members = self._words[at + 3 : at + 3 + 3 * count].reshape(-1, 3)
        # With the kind flag an offset carries the width of a bit-field in its upper byte.
        bits = 0xFFFFFF if info >> 31 else 0xFFFFFFFF
        unnamed: list[tuple[int, int]] = []
        ending = name + b"\0"
        for name_off, type_id, offset in members.tolist():
            if name_off == 0:
                unnamed.append((type_id, offset & bits))
            elif self._strings.startswith(ending, name_off):
                return (offset & bits) // 8, type_id
        if len(seen) <= _MAX_UNNAMED:
            for type_id, offset in unnamed:
                inner = self._resolved(type_id)
                found = self._member(inner, name, seen) if inner is not None and inner not in seen else None
                if found is not None:
                    return offset // 8 + found[0], found[1]
        return None


def _starts(words: memoryview) -> npt.NDArray[np.int64]:
    """Where each type begins, in words; the types after one of an unknown kind cannot be found."""
    found = array.array("I")
    fixed, each = _FIXED, _EACH
    at, end = 0, len(words) - 3
    while at <= end:
        info = words[at + 1]
        kind = info >> 24 & 127
        if kind > _LAST_KIND:
            break
        following = at + 3 + fixed[kind] + each[kind] * (info & 0xFFFFFF)
        if following > end + 3:
            break
        found.append(at)
        at = following
    return np.frombuffer(found, dtype=np.uint32).astype(np.int64)
