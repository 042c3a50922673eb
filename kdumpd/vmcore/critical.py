# SPDX-License-Identifier: GPL-2.0-or-later
"""Which pages an analyst needs first, so that a dump that was cut short still opens and answers.

The stages come in the order in which they should be written: the log, what a tool needs to open the dump, then what
its commands read. Each is found by walking the dead kernel's structures as the tool would. All that is followed is
bounded, and what cannot be found costs its stage a note and nothing else.
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import numpy.typing as npt

from kdumpd.errors import VmcoreError
from kdumpd.vmcore.analyst.image import keep_data, keep_image
from kdumpd.vmcore.analyst.opening import keep_log, keep_memory_map, keep_names, keep_tables
from kdumpd.vmcore.analyst.trace import Trace
from kdumpd.vmcore.kernel_facts import KernelFacts
from kdumpd.vmcore.memory import CrashedMemory
from kdumpd.vmcore.translate import PageTables
from kdumpd.vmcore.vmcoreinfo import Vmcoreinfo

# What damaged memory may make a walk raise: it costs the stage, not the dump.
_FAULTS = (ArithmeticError, LookupError, TypeError, ValueError, struct.error)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """Page frames that matter equally: ascending and unique, but earlier stages may have named some of them."""

    name: str
    pfns: npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Walk:
    """Everything that a subject's walk has to go by."""

    core: CrashedMemory
    info: Vmcoreinfo
    tables: PageTables
    facts: KernelFacts | None
    trace: Trace


def critical_stages(
    core: CrashedMemory, info: Vmcoreinfo, tables: PageTables, facts: KernelFacts | None, notes: list[str]
) -> Iterator[Stage]:
    """The stages, the most important first, found while they are asked for. `notes` grows as steps fail."""
    try:
        walk = _Walk(core=core, info=info, tables=tables, facts=facts, trace=Trace(core, info))
    except VmcoreError as error:
        notes.append(f"the pages that matter first cannot be found: {error}")
        return
    steps: tuple[tuple[str, Callable[[_Walk], None]], ...] = (
        ("kernel log", lambda walk: keep_log(walk.trace, walk.info)),
        ("kernel name", lambda walk: keep_names(walk.trace, walk.info)),
        ("memory map", lambda walk: keep_memory_map(walk.trace, walk.core, walk.info)),
        ("page tables", lambda walk: keep_tables(walk.trace)),
        ("kernel data", lambda walk: keep_data(walk.trace, walk.core, walk.info)),
        ("kernel image", lambda walk: keep_image(walk.trace, walk.core, walk.info)),
    )
    for name, step in steps:
        _try(name, lambda step=step: step(walk), notes)  # type: ignore[misc]
        yield Stage(name=name, pfns=walk.trace.taken())


def must_keep(
    core: CrashedMemory, info: Vmcoreinfo, tables: PageTables, notes: list[str]
) -> Mapping[str, npt.NDArray[np.int64]]:
    """Pages that no rule may leave out, by what they are: without them nothing opens the dump, at any level."""
    found: dict[str, npt.NDArray[np.int64]] = {}
    try:
        trace = Trace(core, info)
    except VmcoreError as error:
        notes.append(f"the pages that must be kept cannot be found: {error}")
        return found
    # The walk over the top of the page tables was the first thing that was read.
    found["page tables"] = trace.taken()
    _try("kernel log", lambda: keep_log(trace, info), notes)
    found["kernel log"] = trace.taken()
    _try("kernel name", lambda: keep_names(trace, info), notes)
    found["kernel name"] = trace.taken()
    _try("memory map", lambda: keep_memory_map(trace, core, info), notes)
    found["memory map"] = trace.taken()
    return found


def _try(name: str, step: Callable[[], None], notes: list[str]) -> None:
    try:
        step()
    except VmcoreError as error:
        notes.append(f"what matters first, {name}: {error}")
    except _FAULTS as error:
        notes.append(f"what matters first, {name}, was given up by a fault of kdumpd: {error!r}")
