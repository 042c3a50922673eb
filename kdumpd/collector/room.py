# SPDX-License-Identifier: GPL-2.0-or-later
"""Where the bitmaps are: in memory as long as they fit there, else in a file on the target.

A bitmap takes 32 MiB for each TiB of memory, which a capture kernel may not have. In a mapped file the kernel can
write them out and fetch them again.
"""

from __future__ import annotations

import numpy as np

from kdumpd.collector.progress import available_memory, size_text
from kdumpd.dumpfile.sink import Sink
from kdumpd.vmcore.classify import Bytes, NewBitmap, in_memory

_BITMAPS = 3  # pages present, pages to write, slab
_SHARE = 4  # of the available memory, one part is for bitmaps


def room_for_bitmaps(sink: Sink, max_pfn: int, notes: list[str]) -> NewBitmap:
    """What makes bitmaps for a machine with page frames below `max_pfn`."""
    needed = _BITMAPS * -(-max_pfn // 8)
    available = available_memory()
    if available is None or needed * _SHARE <= available:
        return in_memory
    notes.append(f"the bitmaps ({size_text(needed)}) are kept on the target: {size_text(available)} of memory are left")

    def on_target(size: int) -> Bytes:
        room = sink.scratch(size) if size else None
        return in_memory(size) if room is None else np.frombuffer(room, dtype=np.uint8)

    return on_target
