# SPDX-License-Identifier: GPL-2.0-or-later
"""The dead kernel's own symbol table (linux: kernel/kallsyms.c, scripts/kallsyms.c).

Names are looked up in kallsyms_names; here are the places of the tables and the addresses.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

import numpy as np

from kdumpd.errors import VmcoreError
from kdumpd.vmcore.arrays import NDArray, unique
from kdumpd.vmcore.kallsyms_names import Memory as Memory
from kdumpd.vmcore.kallsyms_names import Names, read_up_to
from kdumpd.vmcore.vmcoreinfo import Vmcoreinfo

MAX_SYMBOLS = 1 << 20
_MAX_NAME = 1 << 10  # KSYM_NAME_LEN is 512
_MAX_TOKEN_TEXT = 256 * 64
_KERNEL_HALF = 1 << 63


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

    @property
    def after_names(self) -> int | None:
        """The first of these tables that lies behind the names."""
        others = (self.token_table, self.token_index, self.offsets, self.relative_base or 0)
        return min((other for other in others if other > self.names), default=None)


class Kallsyms:
    """The table: addresses in ascending order, and names on demand. Raises VmcoreError when it makes no sense."""

    def __init__(self, memory: Memory, where: Tables, known: Mapping[str, int], wanted: Iterable[str] = ()) -> None:
        """`known` are addresses of symbols from elsewhere: they tell how this kernel codes its addresses."""
        self._memory = memory
        self._where = where
        self.count = _count(memory, where)
        names = Names(memory, where.names, self.count, where.after_names, _tokens(memory, where))
        index = names.find({*known, *wanted})
        self._addresses = self._decoded({name: place for name, place in index.items() if name in known}, known)
        # Of a name that occurs twice, the one at the lower address.
        self.symbols: dict[str, int] = {name: int(self._addresses[place]) for name, place in index.items()}

    def _decoded(self, index: Mapping[str, int], known: Mapping[str, int]) -> NDArray[np.uint64]:
        """The address of each symbol, in the one way of coding that gives the known symbols their addresses."""
        if not index:
            raise VmcoreError("kallsyms holds none of the symbols that VMCOREINFO names")
        for coded in _codings(self._memory, self._where, self.count):
            if all(int(coded[place]) == known[name] for name, place in index.items()):
                return coded
        raise VmcoreError("kallsyms contradicts VMCOREINFO on where the symbols are")


def starts(memory: Memory, where: Tables, known: Iterable[int]) -> NDArray[np.uint64]:
    """Where functions and objects begin, ascending, without looking at a name. Raises VmcoreError.

    `known` are addresses that have to be among them.
    """
    wanted = np.array(list(known), dtype=np.uint64)
    for coded in _codings(memory, where, _count(memory, where)):
        if len(wanted) and all((coded == address).any() for address in wanted):
            held: NDArray[np.uint64] = unique(coded[coded >= np.uint64(_KERNEL_HALF)])
            return held
    raise VmcoreError("kallsyms contradicts VMCOREINFO on where the symbols are")


def _count(memory: Memory, where: Tables) -> int:
    count = int.from_bytes(memory.read(where.num_syms, 4), "little")
    if not 0 < count <= MAX_SYMBOLS:
        raise VmcoreError(f"kallsyms claims {count} symbols")
    return count


def _codings(memory: Memory, where: Tables, count: int) -> Iterable[NDArray[np.uint64]]:
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
    table = read_up_to(memory, where.token_table, _MAX_TOKEN_TEXT)
    tokens = [table[place : table.find(b"\0", place)] if place < len(table) else b"" for place in places]
    if not any(tokens) or max(map(len, tokens)) > _MAX_NAME:
        raise VmcoreError("the tokens of kallsyms make no sense")
    return tokens
