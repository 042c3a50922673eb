# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel image: its data and bss first, which only memory can tell; its text and constants are in vmlinux too."""

from __future__ import annotations

from kdumpd.errors import VmcoreError
from kdumpd.vmcore.analyst.trace import Trace
from kdumpd.vmcore.memory import CrashedMemory
from kdumpd.vmcore.vmcoreinfo import Vmcoreinfo

# Every architecture aligns the sections of the image to this or to less, and starts its data with these symbols.
_SECTION = 2 << 20
_DATA_SYMBOLS = ("init_top_pgt", "swapper_pg_dir", "init_uts_ns", "prb", "node_online_map")
_MAX_IMAGE = 256 << 20


def image_range(core: CrashedMemory, info: Vmcoreinfo) -> tuple[int, int]:
    """Virtual addresses [start, end) of the kernel image. Raises VmcoreError when nothing tells them."""
    stext = info.symbol("_stext")
    if stext is None:
        raise VmcoreError("VMCOREINFO has no SYMBOL(_stext)")
    for segment in core.segments:
        # The first PT_LOAD maps the image; in another core the direct map may be all there is.
        if segment.vaddr <= stext < segment.vaddr + segment.memsz:
            return segment.vaddr, segment.vaddr + min(segment.memsz, _MAX_IMAGE)
    return stext, stext + min(info.number("KERNEL_IMAGE_SIZE") or _MAX_IMAGE, _MAX_IMAGE)


def keep_data(trace: Trace, core: CrashedMemory, info: Vmcoreinfo) -> None:
    """Data and bss: from the lowest symbol that is known to lie there to the end of the image."""
    start, end = image_range(core, info)
    known = [value for value in map(info.symbol, _DATA_SYMBOLS) if value is not None and start <= value < end]
    if not known:
        raise VmcoreError("VMCOREINFO names no symbol in the kernel's data")
    begin = max(start, min(known) // _SECTION * _SECTION)
    trace.keep(begin, end - begin)


def keep_image(trace: Trace, core: CrashedMemory, info: Vmcoreinfo) -> None:
    """All of the image that is mapped."""
    start, end = image_range(core, info)
    trace.keep(start, end - start)
