# SPDX-License-Identifier: GPL-2.0-or-later
"""What differs between architectures, chosen in one place by the machine that a core names."""

from __future__ import annotations

from collections.abc import Callable

from kdumpd.errors import VmcoreError
from kdumpd.vmcore.arm64 import Arm64PageTables, find_page_shift
from kdumpd.vmcore.memory import PAGE_SHIFT, PAGE_SIZE, CrashedMemory
from kdumpd.vmcore.translate import PageTables
from kdumpd.vmcore.vmcoreinfo import Vmcoreinfo
from kdumpd.vmcore.x86_64 import X86PageTables

# By the name that uname(2) has for the machine; the number is the page shift.
_TABLES: dict[str, Callable[[CrashedMemory, Vmcoreinfo, int], PageTables]] = {
    "x86_64": lambda core, info, _: X86PageTables(core, info),
    "aarch64": Arm64PageTables,
}


def page_shift(core: CrashedMemory, info: Vmcoreinfo, doubts: list[str]) -> int:
    """The size of the dead kernel's pages, as a power of 2; what was not believed of it is added to `doubts`."""
    if core.machine == "aarch64":
        return find_page_shift(core, info, doubts) or PAGE_SHIFT
    told = info.texts.get("PAGESIZE", str(PAGE_SIZE))
    if told != str(PAGE_SIZE) and core.machine in _TABLES:
        doubts.append(f"PAGESIZE is {told[:40]} in VMCOREINFO; pages of {core.machine} have {PAGE_SIZE} bytes")
    return PAGE_SHIFT


def page_tables(core: CrashedMemory, info: Vmcoreinfo, shift: int | None = None) -> PageTables:
    """The page tables of the dead kernel, whose pages are of 2^`shift` bytes, by default as large as those of `core`.

    Raises VmcoreError when they cannot be found or read.
    """
    kind = _TABLES.get(core.machine)
    if kind is None:
        raise VmcoreError(f"the page tables of {core.machine} are not known")
    return kind(core, info, core.page_shift if shift is None else shift)
