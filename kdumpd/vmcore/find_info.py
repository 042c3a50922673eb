# SPDX-License-Identifier: GPL-2.0-or-later
"""Finds VMCOREINFO in memory where the file has no note of it: cores that QEMU wrote of a guest without its device.

The kernel keeps the note ready in pages of its own (linux: kernel/vmcore_info.c, update_vmcoreinfo_note). Copies of
other kernels' notes may lie in memory as well, so a note is believed only when the page tables that it names lead to
the very kernel that it describes.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterator

import numpy as np

from kdumpd.errors import VmcoreError
from kdumpd.vmcore.arrays import ints
from kdumpd.vmcore.machines import page_shift, page_tables
from kdumpd.vmcore.memory import CrashedMemory
from kdumpd.vmcore.vmcoreinfo import parse_vmcoreinfo

_HEAD = struct.Struct("<III12s")
_NAME = b"VMCOREINFO\0\0"
_LARGEST = 1 << 16
_BATCH = 2 << 20  # bytes of pages
_MAX_CANDIDATES = 64
_UTS_SIZE = 6 * 65


def find_note(core: CrashedMemory) -> bytes | None:
    """The whole ELF note, or None when there is none, or several that contradict each other."""
    found: dict[bytes, bytes] = {}
    for pfn in itertools.islice(_candidates(core), _MAX_CANDIDATES):
        note = _note_at(core, pfn << core.page_shift)
        if note is not None and _describes(core, note):
            # The kernel adds CRASHTIME to a copy: all else has to agree.
            found[note.split(b"CRASHTIME=")[0][_HEAD.size :].rstrip(b"\0")] = note
    return next(iter(found.values())) if len(found) == 1 else None


def _candidates(core: CrashedMemory) -> Iterator[int]:
    """The page frames that begin like the note."""
    count = _BATCH // core.page_size
    pages = np.empty((count, core.page_size), dtype=np.uint8)
    for extent in core.extents:
        for at in range(extent.start, extent.end, count):
            pfns = np.arange(at, min(at + count, extent.end), dtype=np.int64)
            core.read_pages(pfns, pages[: len(pfns)])
            alike = (pages[: len(pfns), 12 : _HEAD.size] == np.frombuffer(_NAME, dtype=np.uint8)).all(axis=1)
            yield from ints(pfns[alike])


def _note_at(core: CrashedMemory, paddr: int) -> bytes | None:
    try:
        name_size, size, kind, _ = _HEAD.unpack(core.read(paddr, _HEAD.size))
        if name_size != 11 or kind != 0 or not 0 < size <= _LARGEST:
            return None
        return core.read(paddr, _HEAD.size + (size + 3 & ~3))
    except VmcoreError:
        return None


def _describes(core: CrashedMemory, note: bytes) -> bool:
    """Whether the kernel that `note` tells of is the one whose memory this is."""
    info = parse_vmcoreinfo(note[_HEAD.size :])
    names = info.symbol("init_uts_ns")
    if names is None or not info.release:
        return False
    try:
        tables = page_tables(core, info, page_shift(core, info, []))
        raw = tables.read(names, _UTS_SIZE + (info.offset("uts_namespace.name") or 0) + 16)
    except VmcoreError:
        return False
    return info.release.encode() + b"\0" in raw
