# SPDX-License-Identifier: GPL-2.0-or-later
"""The cpus: their areas of per-cpu variables, and what each was doing."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from kdumpd.errors import VmcoreError
from kdumpd.vmcore.analyst.kernel import Kernel
from kdumpd.vmcore.analyst.wanted import PER_CPU

_MAX_CPUS = 1 << 13
_WORD = (1 << 64) - 1
_POINTER = struct.Struct("<Q")
_IRQ_STACK = 1 << 14
_CRASH_NOTE = 512
_IST_STACK = 1 << 13
_IST_ENTRIES = 7
# Areas larger than this altogether come after the tasks, the named variables are enough until then.
_SMALL_AREAS = 8 << 20


class Cpus:
    """The possible cpus. `offsets` are what each adds to the address of a per-cpu variable."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        try:
            self.offsets = self._offsets()
        except VmcoreError:
            self.offsets = ()

    def _offsets(self) -> tuple[int, ...]:
        kernel = self._kernel
        possible = kernel.symbol("__cpu_possible_mask")
        table = kernel.need("__per_cpu_offset")
        count = 0
        if possible is not None:
            mask = int.from_bytes(kernel.trace.read(possible, 8), "little")
            at = 8
            # Possible cpus are numbered without gaps; a mask that is full goes on in the next word.
            while mask == _WORD and at < _MAX_CPUS // 8:
                count += 64
                mask = int.from_bytes(kernel.trace.read(possible + at, 8), "little")
                at += 8
            count += mask.bit_length()
        raw = kernel.trace.read(table, min(count or 1, _MAX_CPUS) * 8)
        return tuple(offset for (offset,) in _POINTER.iter_unpack(raw))

    def each(self, name: str) -> Iterator[int]:
        """The addresses of a per-cpu variable, cpu by cpu; nothing when this kernel has none of that name."""
        symbol = self._kernel.symbol(name)
        if symbol is not None:
            for offset in self.offsets:
                yield symbol + offset & _WORD

    def current_tasks(self) -> Iterator[int]:
        """The task that each cpu was in."""
        kernel = self._kernel
        at = kernel.facts.offsets.get("pcpu_hot.current_task", 0)
        for name, place in (
            # current_task moved into pcpu_hot with 6.2 (e57ef2ed97c1) and out again with 6.15.
            ("pcpu_hot", at),
            ("current_task", 0),
            ("__entry_task", 0),
            ("runqueues", kernel.facts.offsets.get("rq.curr")),
        ):
            if place is None:
                continue
            for address in self.each(name):
                task = self._at(address + place)
                if task >> 63:
                    yield task

    def idle_tasks(self) -> Iterator[int]:
        """The idle task of each cpu: these are in no list of tasks."""
        place = self._kernel.facts.offsets.get("rq.idle")
        if place is None:
            return
        for address in self.each("runqueues"):
            task = self._at(address + place)
            if task >> 63:
                yield task

    def keep_variables(self) -> None:
        """The per-cpu variables that tools read by name."""
        kernel = self._kernel
        sizes = {"runqueues": "rq", "cpu_tss_rw": "tss_struct", "pcpu_hot": "pcpu_hot"}
        for name, size in PER_CPU.items():
            size = kernel.facts.sizes.get(sizes.get(name, ""), size) or 4096
            for address in self.each(name):
                kernel.trace.keep(address, size)
        # A pointer to a per-cpu variable: the registers that each cpu left as an ELF note, which drgn reads.
        notes = self._at(kernel.need("crash_notes"))
        for offset in self.offsets if notes else ():
            kernel.trace.keep(notes + offset & _WORD, _CRASH_NOTE)

    def stacks(self) -> list[tuple[int, int]]:
        """The stacks of interrupts and exceptions, [start, end)."""
        kernel = self._kernel
        found: list[tuple[int, int]] = []
        hot = kernel.facts.offsets.get("pcpu_hot.hardirq_stack_ptr")
        tops = [(address, _IRQ_STACK) for address in self.each("hardirq_stack_ptr")]
        if hot is not None:
            tops += [(address + hot, _IRQ_STACK) for address in self.each("pcpu_hot")]
        if kernel.has("tss_struct.x86_tss") and kernel.has("x86_hw_tss.ist"):
            ist = kernel.offset("tss_struct.x86_tss") + kernel.offset("x86_hw_tss.ist")
            for address in self.each("cpu_tss_rw"):
                tops += [(address + ist + index * 8, _IST_STACK) for index in range(_IST_ENTRIES)]
        for address, size in tops:
            # Some point at the last word of the stack, some behind it.
            top = (self._at(address) - 1 | 0xFFF) + 1
            if top >> 63:
                found.append((top - size, top))
        for address in self.each("irq_stack_ptr"):  # arm64: the lowest address
            bottom = self._at(address)
            if bottom >> 63:
                found.append((bottom, bottom + kernel.stack_size))
        return list(dict.fromkeys(found))

    def _at(self, address: int) -> int:
        try:
            return self._kernel.u64(address)
        except VmcoreError:
            return 0

    def keep_stacks(self) -> None:
        """The stacks of interrupts and exceptions, as far as they are mapped."""
        for start, end in self.stacks():
            self._kernel.trace.keep(start, end - start)

    def keep_areas(self, *, small: bool) -> None:
        """All static per-cpu variables: only where that is little, or only where it is much."""
        kernel = self._kernel
        begin, end = kernel.need("__per_cpu_start"), kernel.need("__per_cpu_end")
        size = end - begin
        if size > 0 and (size * len(self.offsets) <= _SMALL_AREAS) == small:
            for address in self.each("__per_cpu_start"):
                kernel.trace.keep(address, size)
