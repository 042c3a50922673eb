# SPDX-License-Identifier: GPL-2.0-or-later
"""What differs between architectures, chosen in one place by the machine that a core names."""

from __future__ import annotations

from collections.abc import Callable

from kdumpd.errors import VmcoreError
from kdumpd.vmcore.arm64 import Arm64PageTables
from kdumpd.vmcore.memory import CrashedMemory
from kdumpd.vmcore.translate import PageTables
from kdumpd.vmcore.vmcoreinfo import Vmcoreinfo
from kdumpd.vmcore.x86_64 import X86PageTables

# By the name that uname(2) has for the machine.
_TABLES: dict[str, Callable[[CrashedMemory, Vmcoreinfo], PageTables]] = {
    "x86_64": X86PageTables,
    "aarch64": Arm64PageTables,
}


def page_tables(core: CrashedMemory, info: Vmcoreinfo) -> PageTables:
    """The page tables of the dead kernel. Raises VmcoreError when they cannot be found or read."""
    kind = _TABLES.get(core.machine)
    if kind is None:
        raise VmcoreError(f"the page tables of {core.machine} are not known")
    return kind(core, info)
