# SPDX-License-Identifier: GPL-2.0-or-later
"""The names of the kernel's symbol table (linux: kernel/kallsyms.c, scripts/kallsyms.c).

Each name is a row of tokens, each token a byte that stands for some text, with their number before it. 150,000 names
are looked through without being decoded: of each a sum over its characters is taken from the sums of its tokens, and
only names whose sum is that of a wanted name are spelled out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

import numpy as np

from kdumpd.errors import VmcoreError
from kdumpd.vmcore.arrays import NDArray, ints

_CHUNK = 1 << 15  # names are read and summed in pieces of about this many bytes
_PER_MARKER = 256
_NAMES = 1 << 13  # and where all of them are in memory, so many at once
_MAX_NAMES = 16 << 20
_ALIGN = 8
# What a character adds to a sum. Which names have the same sum hardly matters, as they are spelled out in the end.
_WEIGHTS = [pow(0x9E3779B1, char, 1 << 32) for char in range(256)]
_SIFTED = 0xFFFF  # by so much of a sum most names are ruled out

Places = NDArray[np.int64]
Piece = tuple[NDArray[np.uint8], Places, Places]
"""Bytes, where the tokens of each name start in them, and how many they are."""


class Memory(Protocol):
    """What the symbol table needs: kernel virtual memory."""

    def read(self, vaddr: int, size: int) -> bytes:
        """`size` bytes at `vaddr`; raises VmcoreError."""


def read_up_to(memory: Memory, vaddr: int, size: int) -> bytes:
    """What is mapped of `size` bytes at `vaddr`: the tables may end where the kernel image ends."""
    try:
        return memory.read(vaddr, size)
    except VmcoreError:
        if size <= 512:
            raise
        return read_up_to(memory, vaddr, size // 2)


class Names:
    """The `count` names that begin at `at`. The next table that is known of lies at `following`, if there is one."""

    def __init__(self, memory: Memory, at: int, count: int, following: int | None, tokens: Sequence[bytes]) -> None:
        self._memory, self._at, self._count, self._following = memory, at, count, following
        self._tokens = tokens
        self._sums = np.array([_sum_of(token) for token in tokens], dtype=np.uint32)
        # The first character is the type of the symbol, as nm(1) prints it.
        self._types = np.array([_sum_of(token[:1]) for token in tokens], dtype=np.uint32)

    def find(self, names: Iterable[str]) -> dict[str, int]:
        """Which symbol each of `names` is, by its number; of those that occur twice, the first. Raises VmcoreError
        when the table ends too early."""
        wanted = {name.encode() for name in names}
        sifted = np.zeros(_SIFTED + 1, dtype=np.bool_)
        sifted[[_sum_of(name) & _SIFTED for name in wanted]] = True
        found: dict[str, int] = {}
        first = 0
        for data, starts, lengths in self._pieces():
            parts = self._sums[data]
            parts[starts - 1] = 0  # a length is no token, and the first byte of a long one is none either
            parts[np.maximum(starts - 2, 0)[lengths > 127]] = 0
            sums = np.add.reduceat(parts, starts) - self._types[data[starts]]
            for hit in ints(np.flatnonzero(sifted[sums & _SIFTED])):
                begin = int(starts[hit])
                tokens = data[begin : begin + int(lengths[hit])].tolist()
                text = b"".join(self._tokens[token] for token in tokens)[1:]
                if text in wanted:
                    found.setdefault(text.decode(), first + hit)
            first += len(starts)
        return found

    def _pieces(self) -> Iterator[Piece]:
        for places in self._markers():
            try:
                return _pieces_of(*self._walked(places))
            except VmcoreError:
                continue
        return self._one_by_one()

    # A table of markers tells where each 256th name begins: hundreds of rows of names are walked along at once.

    def _markers(self) -> Iterator[Places]:
        """Where groups of 256 names begin, from the start of the names, and where the last one ends at the latest."""
        if self._following is None:
            return
        groups = -(-self._count // _PER_MARKER)
        size = -(-4 * groups // _ALIGN) * _ALIGN
        # It follows the names, and is the last before the tokens or the offsets; in 6.2 and 6.3 the order of the
        # names, 3 bytes for each, comes between (60443c88f3a8, until 404bad70fcf7).
        for between in (0, -(-3 * self._count // _ALIGN) * _ALIGN):
            at = self._following - between - size
            if 0 < at - self._at <= _MAX_NAMES:
                try:
                    found = np.frombuffer(self._memory.read(at, 4 * groups), dtype="<u4").astype(np.int64)
                except VmcoreError:
                    continue
                places = np.append(found, at - self._at)
                if places[0] == 0 and (np.diff(places) > 0).all():
                    yield places

    def _walked(self, places: Places) -> Piece:
        """All names at once. Raises VmcoreError when a group does not end where the next one begins."""
        # The two bytes more are for a length that a damaged marker has read behind the end.
        data = np.frombuffer(self._memory.read(self._at, int(places[-1])) + bytes(2), dtype=np.uint8)
        groups = len(places) - 1
        starts = np.zeros((groups, _PER_MARKER), dtype=np.int64)
        lengths = np.zeros((groups, _PER_MARKER), dtype=np.int64)
        at = places[:-1]
        for number in range(_PER_MARKER):
            if (groups - 1) * _PER_MARKER + number == self._count:
                at = at[:-1]  # the last group is not full
            length = data[at].astype(np.int64)
            at = at + 1
            if len(long := np.flatnonzero(length & 0x80)):
                # Since 6.1 (73bbb94466fd) a length above 127 takes a second byte.
                length[long] = length[long] & 0x7F | data[at[long]].astype(np.int64) << 7
                at[long] += 1
            starts[: len(at), number], lengths[: len(at), number] = at, length
            at = at + length
            if (at > places[1 : len(at) + 1]).any() or not length.all():
                break
        starts, lengths = starts.ravel()[: self._count], lengths.ravel()[: self._count]
        ends = starts + lengths
        gaps = ends[_PER_MARKER - 1 : -1 : _PER_MARKER] != places[1:-1]
        if gaps.any() or not lengths.all() or int(ends[-1]) > int(places[-1]):
            raise VmcoreError("the markers of kallsyms contradict its names")
        return data, starts, lengths

    def _one_by_one(self) -> Iterator[Piece]:
        at = self._at
        left = self._count
        while left > 0:
            raw = read_up_to(self._memory, at, _CHUNK)
            starts: list[int] = []
            lengths: list[int] = []
            place, end = 0, len(raw)
            while place + 1 < end and left > 0:
                length = raw[place]
                begin = place + 1
                if length & 0x80:
                    # Since 6.1 (73bbb94466fd) a length above 127 takes a second byte.
                    length = length & 0x7F | raw[begin] << 7
                    begin += 1
                if length == 0 or begin + length > end:
                    break
                starts.append(begin)
                lengths.append(length)
                place = begin + length
                left -= 1
            if not starts:
                raise VmcoreError(f"the names of kallsyms end {left} symbols too early")
            yield (
                np.frombuffer(raw, dtype=np.uint8, count=place),
                np.array(starts, dtype=np.int64),
                np.array(lengths, dtype=np.int64),
            )
            at += place


def _pieces_of(data: NDArray[np.uint8], starts: Places, lengths: Places) -> Iterator[Piece]:
    for first in range(0, len(starts), _NAMES):
        here, long = starts[first : first + _NAMES], lengths[first : first + _NAMES]
        begin, end = int(here[0]) - 2, int(here[-1] + long[-1])
        begin = max(0, begin)
        yield data[begin:end], here - begin, long


def _sum_of(text: bytes) -> int:
    return sum(_WEIGHTS[char] for char in text) & 0xFFFFFFFF
