# SPDX-License-Identifier: GPL-2.0-or-later
"""Tasks: who was running, all others, their stacks, and what ps shows of them."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator

from kdumpd.errors import VmcoreError
from kdumpd.vmcore.analyst.cpus import Cpus
from kdumpd.vmcore.analyst.kernel import Kernel
from kdumpd.vmcore.memory import PAGE_SIZE

_MAX_TASKS = 1 << 16
_MAX_TASK_SIZE = 1 << 15
_MAX_XARRAY_NODES = 1 << 13
_XARRAY_SLOTS = 64
_MAX_COUNTERS = 8
# Where a task that is not running left its stack pointer: x86_64, arm64.
_SAVED_SP = ("task_struct.thread.sp", "task_struct.thread.cpu_context.sp")
_POINTER = struct.Struct("<Q")
_STACK_END_MAGIC = 0x57AC6E9D  # linux/magic.h: the lowest word of each stack


class Tasks:
    """All tasks that can be reached, found once. `running` are those that the cpus were in."""

    def __init__(self, kernel: Kernel, cpus: Cpus) -> None:
        self._kernel = kernel
        self._cpus = cpus
        self.running = tuple(dict.fromkeys(cpus.current_tasks()))
        self._all: list[int] | None = None
        self._pids: list[int] | None = None

    def every(self) -> list[int]:
        """The running tasks first, then processes and their threads in the order of the kernel's lists.

        Tasks are looked for by their pids as well: one broken list must not hide them all.
        """
        if self._all is None:
            found = list(dict.fromkeys((*self.running, *self._cpus.idle_tasks(), *self._by_pid(), *self._listed())))
            self._all = found[:_MAX_TASKS]
        return self._all

    def _by_pid(self) -> Iterator[int]:
        kernel = self._kernel
        if not (kernel.has("pid.tasks") and kernel.has("task_struct.pid_links")):
            return
        for pid in self.pids():
            try:
                # The first list of struct pid is that of the one task whose pid it is.
                link = kernel.pointer(pid, "pid.tasks")
            except VmcoreError:
                continue
            if link >> 63:
                yield link - kernel.offset("task_struct.pid_links")

    def _listed(self) -> Iterator[int]:
        kernel = self._kernel
        first = kernel.need("init_task")
        tasks_at, node_at = kernel.offset("task_struct.tasks"), kernel.offset("task_struct.thread_node")
        signal_at, head_at = kernel.offset("task_struct.signal"), kernel.offset("signal_struct.thread_head")
        yield first
        count = 0
        for entry in kernel.listed(first + tasks_at, limit=_MAX_TASKS):
            leader = entry - tasks_at
            yield leader
            try:
                signal = kernel.u64(leader + signal_at)
                for node in kernel.listed(signal + head_at, limit=_MAX_TASKS - count):
                    count += 1
                    yield node - node_at
            except VmcoreError:
                continue

    # What a tool reads of them

    def keep_structs(self, tasks: list[int]) -> None:
        """struct task_struct, in whole: with the room for registers that this machine's cpus need at its end."""
        kernel = self._kernel
        size = kernel.size("task_struct")
        # x86 since 4.2 (5aaeb5c01c5b); crash reads as much.
        needed = kernel.symbol("arch_task_struct_size")
        if needed is not None:
            size = max(size, min(kernel.u32(needed), _MAX_TASK_SIZE))
        for task in tasks:
            kernel.trace.keep(task, size)

    def keep_stacks(self, tasks: list[int]) -> None:
        """The kernel stacks."""
        size = self._kernel.stack_size
        for task in tasks:
            stack = self._of(task, "task_struct.stack")
            if stack:
                self._kernel.trace.keep(stack, size)

    def live_stacks(self, tasks: list[int]) -> list[tuple[int, int]]:
        """The part of each stack that is in use, [start, end): all of it for a task that a cpu is in."""
        size = self._kernel.stack_size
        parts: list[tuple[int, int]] = []
        path = next((path for path in _SAVED_SP if self._kernel.has(path)), None)
        for task in tasks:
            stack = self._of(task, "task_struct.stack")
            sp = self._of(task, path) if path is not None and task not in self.running else 0
            if stack:
                parts.append((sp & ~7 if stack < sp < stack + size else stack, stack + size))
        return parts

    def keep_sound(self, tasks: Iterable[int]) -> None:
        """Structs and stacks of those of `tasks` that are tasks beyond doubt; nothing of the others is remembered."""
        stack_at = self._kernel.offset("task_struct.stack")
        sound = [task for task in tasks if self._is_sound(task, stack_at)]
        self._kernel.trace.taken()
        self.keep_structs(sound)
        self.keep_stacks(sound)

    def _is_sound(self, task: int, stack_at: int) -> bool:
        try:
            (stack,) = _POINTER.unpack(self._kernel.peek(task + stack_at, 8))
            (magic,) = _POINTER.unpack(self._kernel.peek(stack, 8))
        except VmcoreError:
            return False
        return bool(stack % PAGE_SIZE == 0 and magic == _STACK_END_MAGIC)

    def _of(self, task: int, path: str) -> int:
        try:
            return self._kernel.pointer(task, path)
        except VmcoreError:
            return 0

    def pids(self) -> list[int]:
        """struct pid of all tasks; the tree in which crash looks for them is init_pid_ns.idr, an xarray."""
        if self._pids is None:
            self._pids = []
            try:
                self._pids.extend(self._walk_pids())
            except VmcoreError:
                return self._pids
        return self._pids

    def _walk_pids(self) -> Iterator[int]:
        kernel = self._kernel
        space = kernel.need("init_pid_ns")
        kernel.struct(space, "pid_namespace")
        nodes = [kernel.u64(space + kernel.offset("pid_namespace.idr.idr_rt.xa_head"))]
        slots_at = kernel.offset("xa_node.slots")
        # Struct pid ends in one entry for each namespace; the room for one more costs nothing.
        pid_size = kernel.size("pid") + 16
        seen: set[int] = set()
        while nodes and len(seen) < _MAX_XARRAY_NODES:
            entry = nodes.pop()
            # linux/xarray.h: an entry whose low bits are 10 is a node; below 4096 it is a mark such as "retry".
            if entry & 3 == 2 and entry > 4096 and entry not in seen:
                seen.add(entry)
                node = entry - 2
                kernel.struct(node, "xa_node")
                try:
                    slots = kernel.trace.read(node + slots_at, _XARRAY_SLOTS * 8)
                except VmcoreError:
                    continue
                nodes.extend(slot for (slot,) in _POINTER.iter_unpack(slots) if slot)
            elif entry & 3 == 0 and entry >> 63:
                kernel.trace.keep(entry, pid_size)
                yield entry

    def keep_memory_descriptors(self, tasks: list[int]) -> None:
        """struct mm_struct with the per-cpu counters from which ps adds up a process's memory."""
        kernel = self._kernel
        size = kernel.size("mm_struct")
        counted = "percpu_counter.counters" in kernel.facts.offsets and "mm_struct.rss_stat" in kernel.facts.offsets
        seen: set[int] = set()
        for task in tasks:
            for path in ("task_struct.mm", "task_struct.active_mm"):
                mm = self._of(task, path)
                if not mm or mm in seen:
                    continue
                seen.add(mm)
                kernel.trace.keep(mm, size)
                # mm_struct.rss_stat became an array of struct percpu_counter in 6.2 (f1a7941243c1).
                if counted and "mm_rss_stat" not in kernel.facts.sizes:
                    self._keep_counters(mm + kernel.offset("mm_struct.rss_stat"))

    def _keep_counters(self, at: int) -> None:
        kernel = self._kernel
        step = kernel.size("percpu_counter")
        for index in range(_MAX_COUNTERS):
            try:
                counter = kernel.pointer(at + index * step, "percpu_counter.counters")
            except VmcoreError:
                return
            if not counter:
                return
            for offset in self._cpus.offsets:
                kernel.trace.keep(counter + offset & (1 << 64) - 1, 4)

    def keep_context(self, tasks: list[int]) -> None:
        """Credentials, signals and namespaces."""
        for path, name in (
            ("task_struct.cred", "cred"),
            ("task_struct.real_cred", "cred"),
            ("task_struct.signal", "signal_struct"),
            ("task_struct.sighand", "sighand_struct"),
            ("task_struct.nsproxy", "nsproxy"),
        ):
            if not self._kernel.has(path):
                continue
            for address in {self._of(task, path) for task in tasks}:
                self._kernel.struct(address, name)
