# SPDX-License-Identifier: GPL-2.0-or-later
"""What every tool reads before it answers anything: the log's ring, the kernel's name, the sections of memory."""

from __future__ import annotations

from kdumpd.errors import VmcoreError
from kdumpd.vmcore.analyst.trace import Trace
from kdumpd.vmcore.arrays import ints
from kdumpd.vmcore.kernel_log import read_log
from kdumpd.vmcore.memory import CrashedMemory
from kdumpd.vmcore.vmcoreinfo import Vmcoreinfo

_UTS_SIZE = 6 * 65
# They map 32 GiB in pages of 4 KiB, and far more in the huge ones that the direct map usually has.
_MAX_TABLES = 64 << 20  # bytes
_MAX_ROOTS = 1 << 20


def keep_log(trace: Trace, info: Vmcoreinfo) -> None:
    """The ring buffer and all that leads to it."""
    for _ in read_log(trace, info):
        pass


def keep_names(trace: Trace, info: Vmcoreinfo) -> None:
    """init_uts_ns and the top of the page tables, by both of its names."""
    uts = info.symbol("init_uts_ns")
    if uts is None:
        raise VmcoreError("VMCOREINFO has no SYMBOL(init_uts_ns)")
    trace.keep(uts + (info.offset("uts_namespace.name") or 0), _UTS_SIZE)
    for name in ("swapper_pg_dir", "init_top_pgt", "init_level4_pgt", "_stext", "node_online_map", "node_data"):
        symbol = info.symbol(name)
        if symbol is not None:
            trace.keep(symbol, trace.tables.page_size)


def keep_memory_map(trace: Trace, core: CrashedMemory, info: Vmcoreinfo) -> None:
    """The mem_section tree: its roots and the arrays that they point at; mem_map's pointer where there is no tree."""
    pointer = info.symbol("mem_map")
    if pointer is not None:
        trace.read_u64(pointer)
    root = info.symbol("mem_section")
    entry_size = info.size("mem_section")
    if root is None:
        return
    bits = info.number("SECTION_SIZE_BITS") or 27
    page_size, page_shift = trace.tables.page_size, trace.tables.page_shift
    if entry_size is None or not 8 <= entry_size <= page_size or not page_shift < bits < 41:
        raise VmcoreError("VMCOREINFO describes no usable struct mem_section")
    per_root = page_size // entry_size
    sections = -(-core.max_pfn >> (bits - page_shift)) or 1
    length = info.length("mem_section") or 1
    physical_bits = info.number("MAX_PHYSMEM_BITS") or 0
    if 0 < physical_bits - bits < 64 and length == 1 << (physical_bits - bits):
        trace.keep(root, sections * entry_size)
        return
    # Tools read all of the root array, however little of it is in use: zeros, which cost a descriptor each.
    trace.keep(root, min(length, _MAX_ROOTS) * 8)
    roots = trace.read(root, min(-(-sections // per_root), length, _MAX_ROOTS) * 8)
    for at in range(0, len(roots), 8):
        array = int.from_bytes(roots[at : at + 8], "little")
        if array:
            trace.keep(array, page_size)


def keep_tables(trace: Trace) -> None:
    """The page tables that map the kernel, level by level from the top."""
    for frames in trace.tables.levels_below_top(_MAX_TABLES >> trace.tables.page_shift):
        trace.keep_frames(ints(frames))
