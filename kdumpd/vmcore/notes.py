# SPDX-License-Identifier: GPL-2.0-or-later
"""ELF notes: registers of the cpus and VMCOREINFO (elf(5); linux: kernel/crash_core.c)."""

from __future__ import annotations

import dataclasses
import re
import struct
from collections.abc import Iterator

NT_PRSTATUS = 1
_NHDR = struct.Struct("<III")
_SOMETHING = re.compile(rb"[^\0]")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """One ELF note; `offset` is that of its description within the whole note block."""

    name: str
    kind: int
    offset: int
    description: bytes


def parse_notes(block: bytes) -> Iterator[Note]:
    """The notes in file order, up to the first that does not fit into the block."""
    at = 0
    while at + _NHDR.size <= len(block):
        namesz, descsz, kind = _NHDR.unpack_from(block, at)
        if namesz == descsz == kind == 0:
            # The kernel pads the notes of each cpu to a fixed size with zeros; a damaged header may claim a lot more.
            something = _SOMETHING.search(block, at)
            if something is None:
                return
            at += (something.start() - at) // _NHDR.size * _NHDR.size
            continue
        name_at = at + _NHDR.size
        desc_at = name_at + (namesz + 3 & ~3)
        end = desc_at + descsz
        if end > len(block):
            return
        name = block[name_at : name_at + namesz].rstrip(b"\0").decode("ascii", "replace")
        yield Note(name=name, kind=kind, offset=desc_at, description=block[desc_at:end])
        at = desc_at + (descsz + 3 & ~3)
