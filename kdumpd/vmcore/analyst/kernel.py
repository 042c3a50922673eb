# SPDX-License-Identifier: GPL-2.0-or-later
"""The dead kernel's variables and structs by name, read through a trace. Every list that is followed is bounded."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import numpy as np

from kdumpd.errors import VmcoreError
from kdumpd.vmcore.analyst.trace import Trace
from kdumpd.vmcore.arrays import NDArray
from kdumpd.vmcore.kernel_facts import KernelFacts, function_starts
from kdumpd.vmcore.translate import PageTables
from kdumpd.vmcore.vmcoreinfo import Vmcoreinfo

_WORD = (1 << 64) - 1
_MAX_STRUCT = 1 << 18
_MAX_STACK = 1 << 17
_DEFAULT_STACK = 1 << 14
_MAX_LIST = 1 << 16
# crash reads this much at once, however short the string is.
_TEXT = 1500


class Kernel:
    """Facts, symbols at their run-time addresses, and memory. Raises VmcoreError for what is not known."""

    def __init__(self, trace: Trace, tables: PageTables, info: Vmcoreinfo, facts: KernelFacts) -> None:
        """`tables` read the same memory without a trace."""
        self.trace = trace
        self._tables = tables
        self._info = info
        self.facts = facts
        self._stext = info.symbol("_stext")

    def symbol(self, name: str) -> int | None:
        """The address of a variable; of a per-cpu variable what `__per_cpu_offset` is added to."""
        relative = self.facts.symbols.get(name)
        if relative is not None and self._stext is not None:
            return self._stext + relative & _WORD
        return self.facts.absolute.get(name)

    def need(self, name: str) -> int:
        """Like `symbol`. Raises VmcoreError when there is none."""
        address = self.symbol(name)
        if address is None:
            raise VmcoreError(f"the address of {name} is not known")
        return address

    def offset(self, path: str) -> int:
        """Offset of "struct.member". Raises VmcoreError."""
        value = self.facts.offsets.get(path)
        if value is None or not 0 <= value < _MAX_STRUCT:
            raise VmcoreError(f"the offset of {path} is not known")
        return value

    def has(self, path: str) -> bool:
        """Whether this kernel has "struct.member"."""
        return path in self.facts.offsets

    def size(self, name: str) -> int:
        """sizeof(struct name). Raises VmcoreError."""
        value = self.facts.sizes.get(name)
        if value is None or not 0 < value <= _MAX_STRUCT:
            raise VmcoreError(f"the size of {name} is not known")
        return value

    @property
    def stack_size(self) -> int:
        """THREAD_SIZE in bytes; a page at least (linux: arch/arm64/include/asm/memory.h)."""
        size = self.facts.sizes.get("thread_union", 0)
        return size if 0 < size <= _MAX_STACK else max(_DEFAULT_STACK, self._tables.page_size)

    @functools.cached_property
    def function_starts(self) -> NDArray[np.uint64]:
        """Where functions begin, ascending; empty where the kernel has no symbol table that can be read."""
        try:
            return function_starts(self._tables, self._info)
        except VmcoreError:
            return np.empty(0, dtype=np.uint64)

    def peek(self, address: int, size: int) -> bytes:
        """Bytes that no tool reads: they leave no trace. Raises VmcoreError."""
        return self._tables.read(address, size)

    def u64(self, address: int) -> int:
        """An unsigned long at `address`. Raises VmcoreError."""
        return self.trace.read_u64(address & _WORD)

    def u32(self, address: int) -> int:
        """An unsigned int at `address`. Raises VmcoreError."""
        return self.trace.read_u32(address & _WORD)

    def pointer(self, base: int, path: str) -> int:
        """The member "struct.member" of the struct at `base`, as an unsigned long. Raises VmcoreError."""
        return self.u64(base + self.offset(path))

    def struct(self, address: int, name: str) -> None:
        """Keeps a whole struct. Raises VmcoreError when its size is not known; what is not mapped is left out."""
        if address:
            self.trace.keep(address, self.size(name))

    def text(self, address: int) -> None:
        """Keeps a string: as much as a tool reads at once."""
        if address:
            self.trace.keep(address, _TEXT)

    def listed(self, head: int, *, limit: int = _MAX_LIST) -> Iterator[int]:
        """The list_heads that hang on the one at `head`, without it; up to a loop, a fault or `limit`."""
        seen = {head, 0}
        at = self.u64(head)
        while at not in seen and len(seen) <= limit:
            seen.add(at)
            yield at
            try:
                at = self.u64(at)
            except VmcoreError:
                # The rest of the list hangs on its other end as well.
                break
        if at == head:
            return
        at = self.u64(head + 8)
        while at not in seen and len(seen) <= limit:
            seen.add(at)
            yield at
            try:
                at = self.u64(at + 8)
            except VmcoreError:
                return
