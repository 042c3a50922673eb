# SPDX-License-Identifier: GPL-2.0-or-later
"""Which pages an analyst needs first, so that a dump that was cut short still opens and answers.

The stages come in the order in which they should be written: the log, what a tool needs to open the dump, then what
its commands read. Each is found by walking the dead kernel's structures as the tool would. All that is followed is
bounded, and what cannot be found costs its stage a note and nothing else.
"""

from __future__ import annotations

import dataclasses
import itertools
import struct
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from kdumpd.errors import VmcoreError
from kdumpd.vmcore.analyst import modules, system, unwind
from kdumpd.vmcore.analyst.cpus import Cpus
from kdumpd.vmcore.analyst.files import Files
from kdumpd.vmcore.analyst.image import keep_data, keep_image
from kdumpd.vmcore.analyst.kernel import Kernel
from kdumpd.vmcore.analyst.opening import keep_log, keep_memory_map, keep_names, keep_tables
from kdumpd.vmcore.analyst.tasks import Tasks
from kdumpd.vmcore.analyst.trace import Trace
from kdumpd.vmcore.arrays import NDArray
from kdumpd.vmcore.kernel_facts import KernelFacts
from kdumpd.vmcore.memory import CrashedMemory
from kdumpd.vmcore.translate import PageTables
from kdumpd.vmcore.vmcoreinfo import Vmcoreinfo

# What damaged memory may make a walk raise: it costs the stage, not the dump.
_FAULTS = (ArithmeticError, LookupError, TypeError, ValueError, struct.error)

Step = tuple[str, Callable[[], None]]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """Page frames that matter equally: ascending and unique, but earlier stages may have named some of them."""

    name: str
    pfns: NDArray[np.int64]


def critical_stages(
    core: CrashedMemory, info: Vmcoreinfo, tables: PageTables, facts: KernelFacts | None, notes: list[str]
) -> Iterator[Stage]:
    """The stages, the most important first, found while they are asked for. `notes` grows as steps fail."""
    try:
        trace = Trace(core, info)
    except VmcoreError as error:
        notes.append(f"the pages that matter first cannot be found: {error}")
        return
    opening: tuple[Step, ...] = (
        ("kernel log", lambda: keep_log(trace, info)),
        ("kernel name", lambda: keep_names(trace, info)),
        ("memory map", lambda: keep_memory_map(trace, core, info)),
        ("page tables", lambda: keep_tables(trace)),
    )
    structures = () if facts is None else _structures(Kernel(trace, tables, info, facts))
    closing: tuple[Step, ...] = (
        ("kernel data", lambda: keep_data(trace, core, info)),
        ("kernel image", lambda: keep_image(trace, core, info)),
    )
    for name, step in itertools.chain(opening, structures, closing):
        _try(name, step, notes)
        yield Stage(name=name, pfns=trace.taken())


def _structures(kernel: Kernel) -> Iterator[Step]:
    """The steps that need to know the kernel's structures; nothing is read before the first is asked for."""
    cpus = Cpus(kernel)
    tasks = Tasks(kernel, cpus)
    files = Files(kernel)
    running = list(tasks.running)

    def unwinding(stacks: list[tuple[int, int]], *, only_calls: bool) -> None:
        code = unwind.code_on(kernel, stacks)
        if only_calls:
            code = unwind.after_calls(kernel, code)
        unwind.keep_orc(kernel, code)
        unwind.keep_code(kernel, code)

    yield from (
        # From here to the tasks is what crash needs to open at all.
        ("kernel variables", lambda: system.keep_variables(kernel)),
        ("functions", lambda: unwind.keep_functions(kernel)),
        ("zones", lambda: system.keep_zones(kernel)),
        ("per-cpu variables", cpus.keep_variables),
        ("running tasks", lambda: tasks.keep_structs(running)),
        ("running tasks' stacks", lambda: tasks.keep_stacks(running)),
        ("interrupt stacks", cpus.keep_stacks),
        ("tasks", lambda: tasks.keep_structs(tasks.every())),
        ("memory descriptors", lambda: tasks.keep_memory_descriptors(tasks.every())),
        ("running tasks' unwinding", lambda: unwinding(tasks.live_stacks(running) + cpus.stacks(), only_calls=False)),
        ("stacks", lambda: tasks.keep_stacks(tasks.every())),
        ("running tasks' files", lambda: files.keep(running)),
        ("running tasks' context", lambda: tasks.keep_context(running)),
        ("unwinding", lambda: unwinding(tasks.live_stacks(tasks.every()), only_calls=True)),
        ("modules", lambda: modules.keep_modules(kernel)),
        ("initialised data", lambda: system.keep_data_section(kernel)),
        ("memory blocks", lambda: system.keep_memory_blocks(kernel)),
        ("slab caches", lambda: system.keep_slab_caches(kernel)),
        ("per-cpu areas", lambda: cpus.keep_areas(small=True)),
        ("context", lambda: tasks.keep_context(tasks.every())),
        ("files", lambda: files.keep(tasks.every())),
        ("large per-cpu areas", lambda: cpus.keep_areas(small=False)),
    )


def must_keep(
    core: CrashedMemory, info: Vmcoreinfo, tables: PageTables, facts: KernelFacts | None, notes: list[str]
) -> Mapping[str, NDArray[np.int64]]:
    """Pages that no rule may leave out, by what they are: without them nothing opens the dump, at any level, or what
    it is for cannot be told: the stacks of the tasks that the cpus were in, where `facts` lead to them."""
    found: dict[str, NDArray[np.int64]] = {}
    try:
        trace = Trace(core, info)
    except VmcoreError as error:
        notes.append(f"the pages that must be kept cannot be found: {error}")
        return found
    # The walk over the top of the page tables was the first thing that was read.
    found["page tables"] = trace.taken()
    steps: tuple[Step, ...] = (
        ("kernel log", lambda: keep_log(trace, info)),
        ("kernel name", lambda: keep_names(trace, info)),
        ("memory map", lambda: keep_memory_map(trace, core, info)),
    )
    if facts is not None:
        steps += (("running tasks", lambda: _keep_running(Kernel(trace, tables, info, facts))),)
    for name, step in steps:
        _try(name, step, notes)
        found[name] = trace.taken()
    return found


def _keep_running(kernel: Kernel) -> None:
    tasks = Tasks(kernel, Cpus(kernel))
    tasks.keep_sound(tasks.running)


def _try(name: str, step: Callable[[], None], notes: list[str]) -> None:
    try:
        step()
    except VmcoreError as error:
        notes.append(f"what matters first, {name}: {error}")
    except _FAULTS as error:
        notes.append(f"what matters first, {name}, was given up by a fault of kdumpd: {error!r}")
