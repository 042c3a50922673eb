# SPDX-License-Identifier: GPL-2.0-or-later
"""Loaded modules: struct module and its memory, in which their symbols and unwind tables lie as well."""

from __future__ import annotations

from collections.abc import Iterator

from kdumpd.errors import VmcoreError
from kdumpd.vmcore.analyst.kernel import Kernel

_MAX_MODULES = 1 << 12
_MAX_AREA = 64 << 20
_SECTIONS = 4096


def modules(kernel: Kernel) -> Iterator[int]:
    """The addresses of struct module, in the order of the list. Raises VmcoreError."""
    at = kernel.offset("module.list")
    for entry in kernel.listed(kernel.need("modules"), limit=_MAX_MODULES):
        yield entry - at


def areas(kernel: Kernel, module: int) -> Iterator[tuple[int, int]]:
    """Address and size of each piece of a module's memory. Raises VmcoreError."""
    if kernel.has("module.mem"):
        # 6.4 split the two layouts into up to eight areas (ac3b43283923).
        step = kernel.size("module_memory")
        first = kernel.offset("module.mem")
        places = [
            (first + at + kernel.offset("module_memory.base"), first + at + kernel.offset("module_memory.size"))
            for at in range(0, min(8 * step, kernel.size("module") - first - step + 1), step)
        ]
    else:
        places = [
            (
                kernel.offset(layout) + kernel.offset("module_layout.base"),
                kernel.offset(layout) + kernel.offset("module_layout.size"),
            )
            for layout in ("module.core_layout", "module.init_layout")
        ]
    for base_at, size_at in places:
        base, size = kernel.u64(module + base_at), kernel.u32(module + size_at)
        if base >> 63 and 0 < size <= _MAX_AREA:
            yield base, size


def keep_modules(kernel: Kernel) -> None:
    """struct module and the memory of every module."""
    for module in modules(kernel):
        kernel.struct(module, "module")
        try:
            if kernel.has("module.sect_attrs") and (sections := kernel.pointer(module, "module.sect_attrs")):
                kernel.trace.keep(sections, _SECTIONS)  # by these drgn places a module's sections
            for base, size in areas(kernel, module):
                kernel.trace.keep(base, size)
        except VmcoreError:
            continue
