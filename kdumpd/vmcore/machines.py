# SPDX-License-Identifier: GPL-2.0-or-later
"""What differs between architectures, chosen in one place by the machine that a core names."""

from __future__ import annotations

from kdumpd.errors import VmcoreError
from kdumpd.vmcore.memory import CrashedMemory
from kdumpd.vmcore.translate import PageTables
from kdumpd.vmcore.vmcoreinfo import Vmcoreinfo
from kdumpd.vmcore.x86_64 import X86PageTables

_TABLES: dict[str, type[X86PageTables]] = {"x86_64": X86PageTables}


def page_tables(core: CrashedMemory, info: Vmcoreinfo) -> PageTables:
    """The page tables of the dead kernel. Raises VmcoreError when they cannot be found or read."""
    kind = _TABLES.get(core.machine)
    if kind is None:
        raise VmcoreError(f"the page tables of {core.machine} are not known")
    return kind(core, info)
