# SPDX-License-Identifier: GPL-2.0-or-later
"""BTF: the kernel's own type information (linux: Documentation/bpf/btf.rst, include/uapi/linux/btf.h).

Only what tells where a member lies, how large a type is and what an enumerator is worth. The blob is 5 MB with over
100,000 types: one loop finds where each begins, everything else looks at the few that are asked for.
"""

from __future__ import annotations

import array
import functools
import struct
from collections.abc import Collection

import numpy as np

from kdumpd.errors import VmcoreError
from kdumpd.vmcore.arrays import NDArray, ints

_HEADER = struct.Struct("<HBBIIIII")
_MAGIC = 0xEB9F
_STRUCT, _UNION, _ENUM, _ENUM64 = 4, 5, 6, 19
_ARRAY, _TYPEDEF = 3, 8
_ALIASES = frozenset((_TYPEDEF, 9, 10, 11, 18))  # typedef, volatile, const, restrict, type tag
_COMPOUND = frozenset((_STRUCT, _UNION))

# Words of a type by its kind: a fixed number, 0 of those that are not known, and a number for each of its vlen entries.
_KINDS = 128
_LAST_KIND = _ENUM64
_FIXED = np.zeros(_KINDS, dtype=np.uint32)
_EACH = np.zeros(_KINDS, dtype=np.uint32)
_FIXED[: _LAST_KIND + 1] = 3
for _kind, _words in ((1, 1), (_ARRAY, 3), (14, 1), (17, 1)):
    _FIXED[_kind] += _words
for _kind, _words in ((_STRUCT, 3), (_UNION, 3), (_ENUM, 2), (13, 2), (15, 3), (_ENUM64, 3)):
    _EACH[_kind] = _words
_CHUNK = 1 << 15  # words looked at at once

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

    def __init__(self, blob: bytes | memoryview, structs: Collection[str] | None = None) -> None:
        """`blob` is all of the section .BTF, or what /sys/kernel/btf/vmlinux holds. Only `structs` (and unions) can be
        asked for by name, if they are given: of 10,000 names in a dictionary 3 MB of memory stay in pieces."""
        self._wanted = None if structs is None else {name.encode() for name in structs}
        size = blob_size(bytes(blob[: _HEADER.size]))
        if size > len(blob):
            raise VmcoreError(f"the type information (BTF) ends after {len(blob)} of {size} bytes")
        _, _, _, header, type_at, type_size, string_at, string_size = _HEADER.unpack_from(blob)
        if type_at % 4 or header % 4:
            raise VmcoreError("the type information (BTF) is not aligned")
        types = memoryview(blob)[header + type_at :][: type_size & ~3]
        self._words = np.frombuffer(types, dtype="<u4")
        # Not cut out of the blob: a copy would take 2 MB, where this is what most memory is needed for at a time.
        self._blob = bytes(blob)
        self._strings_at = header + string_at
        self._strings_end = self._strings_at + string_size
        self._starts = _starts(self._words)

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
        at = self._blob.find(b"\0" + name.encode() + b"\0", self._strings_at, self._strings_end)
        if at < 0:
            return None
        at -= self._strings_at
        names, places, wide = self._enumerators
        values: set[int] = set()
        for index in ints(np.flatnonzero(names == at + 1)):
            place = int(places[index])
            value = int(self._words[place + 1])
            if wide[index]:
                value |= int(self._words[place + 2]) << 32
            values.add(value)
        return values.pop() if len(values) == 1 else None

    # Inside

    def _kinds(self) -> NDArray[np.uint32]:
        kinds: NDArray[np.uint32] = self._words[self._starts + 1] >> 24 & _KINDS - 1
        return kinds

    @functools.cached_property
    def _enumerators(self) -> tuple[NDArray[np.uint32], NDArray[np.int64], NDArray[np.bool_]]:
        """Of all enumerators: offset of the name, word that it starts at, whether its value has 64 bits."""
        kinds = self._kinds()
        places: list[NDArray[np.int64]] = []
        for kind in (_ENUM, _ENUM64):
            starts = self._starts[kinds == kind]
            counts = (self._words[starts + 1] & 0xFFFFFF).astype(np.int64)
            number = np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)
            places.append(np.repeat(starts + 3, counts) + number * _EACH[kind])
        wide = np.repeat((False, True), [len(each) for each in places])
        found = np.concatenate(places)
        return self._words[found], found, wide

    @functools.cached_property
    def _compounds(self) -> dict[bytes, int]:
        """Where each struct and union starts that has a name and members; of several of one name, the first."""
        info = self._words[self._starts + 1]
        kinds = self._kinds()
        wanted = ((kinds == _STRUCT) | (kinds == _UNION)) & (info & 0xFFFFFF != 0)
        starts = self._starts[wanted]
        found: dict[bytes, int] = {}
        for name, start in zip(ints(self._words[starts]), ints(starts), strict=True):
            begin = self._strings_at + name
            end = self._blob.find(b"\0", begin, self._strings_end)
            if not name or end < 0:
                continue
            text = self._blob[begin:end]
            if self._wanted is None or text in self._wanted:
                found.setdefault(text, start)
        return found

    def _compound(self, name: str) -> int | None:
        return self._compounds.get(name.encode())

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
            elif self._blob.startswith(ending, self._strings_at + name_off, self._strings_end):
                return (offset & bits) // 8, type_id
        if len(seen) <= _MAX_UNNAMED:
            for type_id, offset in unnamed:
                inner = self._resolved(type_id)
                found = self._member(inner, name, seen) if inner is not None and inner not in seen else None
                if found is not None:
                    return offset // 8 + found[0], found[1]
        return None


def _starts(words: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Where each type begins, in words; the types after one of an unknown kind cannot be found.

    How long a type would be is computed for every word at once; only the way from one to the next is a loop.
    """
    found = array.array("I")
    at, end = 0, len(words) - 3
    for first in range(0, len(words), _CHUNK):
        info = words[first + 1 : first + 1 + _CHUNK]
        kinds = info >> 24 & _KINDS - 1
        sizes = memoryview(_FIXED[kinds] + _EACH[kinds] * (info & 0xFFFFFF)).cast("B").cast("I")
        until = min(first + len(sizes), end + 1)
        while at < until:
            following = at + sizes[at - first]
            if following <= at or following > end + 3:
                return np.frombuffer(found, dtype=np.uint32)
            found.append(at)
            at = following
    return np.frombuffer(found, dtype=np.uint32)
