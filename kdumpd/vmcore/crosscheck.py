# SPDX-License-Identifier: GPL-2.0-or-later
"""VMCOREINFO against the kernel's own type information: a value about which they disagree is not used.

makedumpfile believes VMCOREINFO alone; when a distribution's patch moves a member and forgets the note, it drops
pages that were needed. Here such a key counts as absent: the rules that need it are off and their pages kept.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from kdumpd.vmcore.analyst.wanted import CHECKED_FLAGS, CHECKED_MEMBERS, CHECKED_SIZES, CHECKED_TYPES
from kdumpd.vmcore.kernel_facts import KernelFacts
from kdumpd.vmcore.vmcoreinfo import Vmcoreinfo

_TYPE_SHIFT = 24
_U32 = 0xFFFFFFFF


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Contradiction:
    """One key of VMCOREINFO, what it says, and what the type information says."""

    key: tuple[str, str]
    told: int
    known: int

    def __str__(self) -> str:
        kind, name = self.key
        return f"{kind}({name}) is {self.told} in VMCOREINFO and {self.known} in the kernel's type information"


def contradictions(info: Vmcoreinfo, facts: KernelFacts) -> Iterator[Contradiction]:
    """Every key that both know and say differently."""
    known: dict[tuple[str, str], int] = {}
    known.update({("OFFSET", name): facts.offsets[name] for name in CHECKED_MEMBERS if name in facts.offsets})
    known.update({("SIZE", name): facts.sizes[name] for name in CHECKED_SIZES if name in facts.sizes})
    known.update({("NUMBER", name): facts.values[name] for name in CHECKED_FLAGS if name in facts.values})
    known.update(
        {
            ("NUMBER", name): (facts.values[enumerator] << _TYPE_SHIFT) & _U32
            for name, enumerator in CHECKED_TYPES.items()
            if enumerator in facts.values
        }
    )
    for key, value in known.items():
        told = info.values.get(key)
        # Page types are printed as signed long but are unsigned ints in struct page.
        if told is not None and told & _U32 != value & _U32:
            yield Contradiction(key=key, told=told, known=value)


def agreed(info: Vmcoreinfo, facts: KernelFacts | None, notes: list[str]) -> Vmcoreinfo:
    """`info` without the keys that `facts` contradict; each of them is noted with both numbers."""
    if facts is None:
        return info
    found = list(contradictions(info, facts))
    if not found:
        return info
    notes.extend(f"the pages concerned are kept: {each}" for each in found)
    doubted = {each.key for each in found}
    return dataclasses.replace(info, values={key: value for key, value in info.values.items() if key not in doubted})
