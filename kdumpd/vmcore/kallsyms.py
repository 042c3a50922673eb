# SPDX-License-Identifier: GPL-2.0-or-later
"""The dead kernel's own symbol table (linux: kernel/kallsyms.c, scripts/kallsyms.c).

Each name is a row of tokens, each token a byte that stands for some text. 150,000 names are looked through without
being decoded: of each a 64-bit sum is computed from the sums of its tokens, and only names whose sum is that of a
wanted name are spelled out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Protocol

import numpy as np
import numpy.typing as npt

from kdumpd.errors import VmcoreError
from kdumpd.vmcore.arrays import ints
from kdumpd.vmcore.vmcoreinfo import Vmcoreinfo

MAX_SYMBOLS = 1 << 20
_MAX_NAME = 1 << 10  # KSYM_NAME_LEN is 512
_MAX_TOKEN_TEXT = 256 * 64
_CHUNK = 1 << 15  # names are read and summed in pieces of about this many bytes
_BASE = 0x9E3779B97F4A7C15  # odd, so that it has an inverse
_INVERSE = pow(_BASE, -1, 1 << 64)
_WORD = (1 << 64) - 1
_KERNEL_HALF = 1 << 63


class Memory(Protocol):
    """What the symbol table needs: kernel virtual memory."""

    def read(self, vaddr: int, size: int) -> bytes:
        """`size` bytes at `vaddr`; raises VmcoreError."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Tables:
    """Where the tables lie, as VMCOREINFO says it since 6.0 (5fd8fea935a1). No relative base from 7.1 on."""

    names: int
    num_syms: int
    token_table: int
    token_index: int
    offsets: int
    relative_base: int | None

    @classmethod
    def of(cls, info: Vmcoreinfo) -> Tables:
        """Raises VmcoreError when `info` does not name them."""

        def need(name: str) -> int:
            value = info.symbol(name)
            if value is None:
                raise VmcoreError(f"VMCOREINFO has no SYMBOL({name})")
            return value

        return cls(
            names=need("kallsyms_names"),
            num_syms=need("kallsyms_num_syms"),
            token_table=need("kallsyms_token_table"),
            token_index=need("kallsyms_token_index"),
            offsets=need("kallsyms_offsets"),
            relative_base=info.symbol("kallsyms_relative_base"),
        )


class Kallsyms:
    """The table: addresses in ascending order, and names on demand. Raises VmcoreError when it makes no sense."""

    def __init__(self, memory: Memory, where: Tables, known: Mapping[str, int], wanted: Iterable[str] = ()) -> None:
        """`known` are addresses of symbols from elsewhere: they tell how this kernel codes its addresses."""
        self._memory = memory
        self._where = where
        self.count = _count(memory, where)
        self._tokens = _tokens(memory, where)
        self._token_sizes = np.array([len(token) for token in self._tokens], dtype=np.int64)
        self._token_sums = np.array([_digits(token) for token in self._tokens], dtype=np.uint64)
        self._first_chars = np.array([token[:1] or b"\0" for token in self._tokens], dtype="S1").view(np.uint8)
        self._up = self._down = np.ones(1, dtype=np.uint64)
        index = self._look_up({*known, *wanted})
        self._addresses = self._decoded({name: place for name, place in index.items() if name in known}, known)
        # Of a name that occurs twice, the one at the lower address.
        self.symbols: dict[str, int] = {name: int(self._addresses[place]) for name, place in index.items()}

    # Names

    def _look_up(self, names: Iterable[str]) -> dict[str, int]:
        """Which symbol each of `names` is."""
        wanted = {name.encode(): _sum_of(name.encode()) for name in names}
        sums = np.unique(np.fromiter(wanted.values(), dtype=np.uint64, count=len(wanted)))
        found: dict[str, int] = {}
        first = 0
        for data, starts, lengths in self._chunks():
            hits = np.flatnonzero(np.isin(self._sums(data, starts, lengths), sums))
            for hit in ints(hits):
                begin = int(starts[hit])
                tokens = data[begin : begin + int(lengths[hit])].tolist()
                # The first character is the type of the symbol, as nm(1) prints it.
                text = b"".join(self._tokens[token] for token in tokens)[1:]
                if text in wanted:
                    found.setdefault(text.decode(), first + hit)
            first += len(starts)
        return found

    def _chunks(self) -> Iterable[tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
        """Pieces of kallsyms_names: the bytes, where each name's tokens start in them, and how many they are."""
        at = self._where.names
        left = self.count
        while left > 0:
            raw = _read_up_to(self._memory, at, _CHUNK)
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

    def _sums(
        self, data: npt.NDArray[np.uint8], starts: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.uint64]:
        """The sum of each name: its characters as the digits of a number, modulo 2^64, without the type."""
        sizes = self._token_sizes[data]
        places = np.cumsum(sizes) - sizes
        up, down = self._powers(int(places[-1]) + 1)
        # Every token counts by its place in the whole piece; what lies before a name is divided out of its sum.
        parts = self._token_sums[data] * up[places]
        parts[starts - 1] = 0  # a length is no token, and the first byte of a long one is none either
        parts[np.maximum(starts - 2, 0)[lengths > 127]] = 0
        total: npt.NDArray[np.uint64] = np.add.reduceat(parts, starts) * down[places[starts]]
        # The type is the first character; what is left is the sum of the name, one place too high.
        total -= self._first_chars[data[starts]].astype(np.uint64)
        return total

    def _powers(self, count: int) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64]]:
        """The first `count` powers of the base and of its inverse, modulo 2^64."""
        if count > len(self._up):
            powers = np.full((2, 2 * count), ((_BASE,), (_INVERSE,)), dtype=np.uint64)
            powers[:, 0] = 1
            self._up, self._down = np.multiply.accumulate(powers, axis=1)
        return self._up, self._down

    def _decoded(self, index: Mapping[str, int], known: Mapping[str, int]) -> npt.NDArray[np.uint64]:
        """The address of each symbol, in the one way of coding that gives the known symbols their addresses."""
        if not index:
            raise VmcoreError("kallsyms holds none of the symbols that VMCOREINFO names")
        for coded in _codings(self._memory, self._where, self.count):
            if all(int(coded[place]) == known[name] for name, place in index.items()):
                return coded
        raise VmcoreError("kallsyms contradicts VMCOREINFO on where the symbols are")


def starts(memory: Memory, where: Tables, known: Iterable[int]) -> npt.NDArray[np.uint64]:
    """Where functions and objects begin, ascending, without looking at a name. Raises VmcoreError.

    `known` are addresses that have to be among them.
    """
    wanted = np.array(list(known), dtype=np.uint64)
    for coded in _codings(memory, where, _count(memory, where)):
        if len(wanted) and np.isin(wanted, coded).all():
            held: npt.NDArray[np.uint64] = np.unique(coded[coded >= np.uint64(_KERNEL_HALF)])
            return held
    raise VmcoreError("kallsyms contradicts VMCOREINFO on where the symbols are")


def _count(memory: Memory, where: Tables) -> int:
    count = int.from_bytes(memory.read(where.num_syms, 4), "little")
    if not 0 < count <= MAX_SYMBOLS:
        raise VmcoreError(f"kallsyms claims {count} symbols")
    return count


def _codings(memory: Memory, where: Tables, count: int) -> Iterable[npt.NDArray[np.uint64]]:
    """The addresses of all symbols, in each of the ways in which kernels have coded them."""
    raw = np.frombuffer(memory.read(where.offsets, count * 4), dtype="<i4").astype(np.int64)
    if where.relative_base is not None:
        base = int.from_bytes(memory.read(where.relative_base, 8), "little")
        # Per-cpu symbols are absolute, others count down from the base, where CONFIG_KALLSYMS_ABSOLUTE_PERCPU says
        # so (x86_64 until 6.15); the sign tells which.
        down = np.uint64(base) - np.uint64(1) - raw.view(np.uint64)
        yield np.where(raw >= 0, raw.view(np.uint64), down)
        yield np.uint64(base) + (raw & 0xFFFFFFFF).view(np.uint64)
    # From 7.1 on each entry counts from its own place.
    places = np.uint64(where.offsets) + np.arange(len(raw), dtype=np.uint64) * np.uint64(4)
    yield places + raw.view(np.uint64)


def _tokens(memory: Memory, where: Tables) -> list[bytes]:
    """The text of each of the 256 tokens."""
    places = np.frombuffer(memory.read(where.token_index, 512), dtype="<u2").tolist()
    table = _read_up_to(memory, where.token_table, _MAX_TOKEN_TEXT)
    tokens = [table[place : table.find(b"\0", place)] if place < len(table) else b"" for place in places]
    if not any(tokens) or max(map(len, tokens)) > _MAX_NAME:
        raise VmcoreError("the tokens of kallsyms make no sense")
    return tokens


def _read_up_to(memory: Memory, vaddr: int, size: int) -> bytes:
    """What is mapped of `size` bytes at `vaddr`: the tables may end where the kernel image ends."""
    try:
        return memory.read(vaddr, size)
    except VmcoreError:
        if size <= 512:
            raise
        return _read_up_to(memory, vaddr, size // 2)


def _digits(text: bytes) -> int:
    total = 0
    for char in reversed(text):
        total = total * _BASE + char & _WORD
    return total


def _sum_of(name: bytes) -> int:
    return _digits(name) * _BASE & _WORD
