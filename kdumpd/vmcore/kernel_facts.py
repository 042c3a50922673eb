# SPDX-License-Identifier: GPL-2.0-or-later
"""What is known of a kernel's structures: where members lie, how large things are, where its symbols are.

VMCOREINFO tells what the memory map and the log need. Tasks, stacks and modules need more, which comes from the
kernel's own type information (BTF) and symbol table.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class KernelFacts:
    """Facts of one kernel build; the same for each boot of it.

    `offsets` maps "struct.member" to bytes from the start of the struct, `sizes` maps "struct" to bytes, `values` maps
    enumerators to their value, `symbols` maps names to bytes from `_stext` (negative below it; per-cpu symbols, whose
    addresses are offsets into an area, are stored as they are). `source` says where they come from.
    """

    release: str
    build_id: str | None
    offsets: Mapping[str, int]
    sizes: Mapping[str, int]
    values: Mapping[str, int]
    symbols: Mapping[str, int]
    source: str
