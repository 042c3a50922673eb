# SPDX-License-Identifier: GPL-2.0-or-later
"""Checks an ELF core file: is all there that its headers name, and is it what the memory held?"""

from __future__ import annotations

import random
import struct
from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np

from kdumpd.dumpfile.stored import Stored
from kdumpd.errors import DumpFormatError, VmcoreError
from kdumpd.vmcore.arrays import NDArray
from kdumpd.vmcore.elf_headers import INCOMPLETE, PN_XNUM
from kdumpd.vmcore.elfcore import ElfCore
from kdumpd.vmcore.memory import CrashedMemory

_EHDR = struct.Struct("<16sHHIQQQIHHHHHH")
_PHDR = struct.Struct("<IIQQQQQQ")
_ET_CORE = 4
_PT_LOAD, _PT_NOTE = 1, 4
_STEP = 4096  # program headers read in one go
_INFO_AT = 44  # sh_info in a section header


def check_headers(file: Stored) -> None:
    """Raises DumpFormatError with the first contradiction."""
    name = file.name
    raw = file.read_at(0, _EHDR.size)
    if len(raw) < _EHDR.size or raw[:6] != b"\x7fELF\x02\x01":
        raise DumpFormatError(f"{name} is not a 64-bit little-endian ELF file")
    _, kind, _, _, _, at, sections_at, flags, _, size, count, _, _, _ = _EHDR.unpack(raw)
    if kind != _ET_CORE or size != _PHDR.size:
        raise DumpFormatError(f"{name} is not an ELF core file")
    if flags & INCOMPLETE or not file.complete:
        raise DumpFormatError(f"{name} says of itself that it is incomplete")
    if count == PN_XNUM and sections_at:
        count = int.from_bytes(file.read_at(sections_at + _INFO_AT, 4), "little")
    loads = 0
    for first in range(0, count, _STEP):
        wanted = min(_STEP, count - first) * _PHDR.size
        table = file.read_at(at + first * _PHDR.size, wanted)
        if len(table) < wanted:
            raise DumpFormatError(f"{name} ends inside its program headers")
        for index, (kind, _, offset, _, _, filesz, memsz, _) in enumerate(_PHDR.iter_unpack(table), start=first):
            if kind not in (_PT_LOAD, _PT_NOTE):
                continue
            loads += kind == _PT_LOAD
            if filesz and offset + filesz > file.size:
                raise DumpFormatError(f"{name}: segment {index} of {count} reaches beyond the end of the file")
            if filesz > memsz:
                raise DumpFormatError(f"{name}: segment {index} of {count} is larger in the file than in memory")
    if not loads:
        raise DumpFormatError(f"{name} holds no memory")


def check_pages(
    path: Path,
    *,
    sample: int | None,
    memory: CrashedMemory,
    needed: Mapping[str, NDArray[np.int64]],
    unreadable: Collection[int],
) -> int:
    """Compares `sample` pages at random, all of them for None, and all `needed` ones that `memory` has with what it
    holds. Returns how many. Raises DumpFormatError."""
    pfns = {int(pfn): what for what, some in needed.items() for pfn in some if memory.has(int(pfn))}
    with ElfCore(path) as core:
        core.use_pages(memory.page_shift)
        counts = [extent.end - extent.start for extent in core.extents]
        if sample is None:
            chosen = [pfn for extent in core.extents for pfn in range(extent.start, extent.end)]
        else:
            extents = random.choices(core.extents, counts, k=sample) if counts else []
            chosen = [random.randrange(extent.start, extent.end) for extent in extents]
        # A hole that was filled is zero here and anything there: only pages that hold something can be compared.
        for pfn in sorted({*chosen, *pfns}):
            what = f"{path}: {pfns.get(pfn, 'page')}, pfn {pfn:#x},"
            try:
                page = core.read(pfn << core.page_shift, core.page_size)
            except VmcoreError as error:
                raise DumpFormatError(f"{what} is missing: {error}") from error
            if pfn in unreadable or (pfn not in pfns and not any(page)):
                continue
            if memory.has(pfn) and memory.read(pfn << memory.page_shift, memory.page_size) != page:
                raise DumpFormatError(f"{what} is not what the memory held")
        return len({*chosen, *pfns})
