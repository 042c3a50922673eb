# SPDX-License-Identifier: GPL-2.0-or-later
"""-x VMLINUX: what VMCOREINFO lacks, from the kernel's own file: its symbol table and its type information (BTF).

What VMCOREINFO says itself always holds: it comes from the kernel that died.
"""

from __future__ import annotations

import collections
import dataclasses
import importlib
import re
from pathlib import Path
from typing import Any

from kdumpd.errors import KdumpError, UnsupportedError, VmcoreError, os_reason
from kdumpd.vmcore.btf import Btf
from kdumpd.vmcore.translate import PageTables
from kdumpd.vmcore.vmcoreinfo import Vmcoreinfo

_SYMBOLS = (
    "init_top_pgt", "swapper_pg_dir", "init_uts_ns", "prb", "clear_seq", "log_buf", "log_buf_len",
    "log_first_idx", "log_next_idx", "_stext", "node_online_map", "vmcore_cpu_state",
)  # fmt: skip
_SIZES = ("page", "mem_section", "printk_ringbuffer", "prb_desc", "prb_data_ring", "printk_info", "prb_desc_ring",
          "printk_log", "dev_printk_info", "latched_seq")  # fmt: skip
_OFFSETS = (
    "page.flags", "page._refcount", "page.mapping", "page.lru", "page._mapcount", "page.private", "page.compound_head",
    "page.compound_info", "folio._folio_order", "folio._folio_dtor", "mem_section.section_mem_map",
    "uts_namespace.name", "printk_ringbuffer.desc_ring", "printk_ringbuffer.text_data_ring", "printk_ringbuffer.fail",
    "prb_desc_ring.count_bits", "prb_desc_ring.descs", "prb_desc_ring.infos", "prb_desc_ring.head_id",
    "prb_desc_ring.tail_id", "prb_desc.state_var", "prb_desc.text_blk_lpos", "prb_data_ring.size_bits",
    "prb_data_ring.data", "prb_data_ring.head_lpos", "prb_data_ring.tail_lpos", "prb_data_blk_lpos.begin",
    "prb_data_blk_lpos.next", "printk_info.seq", "printk_info.ts_nsec", "printk_info.text_len",
    "printk_info.caller_id", "printk_info.dev_info", "atomic_long_t.counter", "latched_seq.val",
)  # fmt: skip
_NUMBERS = ("PG_lru", "PG_private", "PG_swapcache", "PG_swapbacked", "PG_hwpoison", "PG_slab", "PG_hugetlb")
# VMCOREINFO has the value of this pointer, the symbol table only its place.
_ROOT = "mem_section"
_PLACE = ("SYMBOL", "&mem_section")
_BANNER = re.compile(rb"Linux version (\S+) ")


def completed(info: Vmcoreinfo, path: Path, notes: list[str]) -> Vmcoreinfo:
    """`info` with what it lacks from the vmlinux at `path`. Raises KdumpError when that cannot be used.

    Symbols are moved by what KASLR moved those that both name; where there is none that both name, none is taken.
    """
    elf, file = _open(path)
    with file:
        release = _release(elf)
        if info.release is not None and release is not None and release != info.release:
            raise VmcoreError(f"{path} is of kernel {release}, the memory of kernel {info.release}")
        symbols = _symbols(elf, path)
        values = dict(info.values)
        moved = _moved_by(info, symbols)
        if moved is None:
            notes.append(f"no symbol of {path} is taken: nothing tells where the kernel was")
        else:
            for name in _SYMBOLS:
                if name in symbols:
                    values.setdefault(("SYMBOL", name), symbols[name] + moved)
            if _ROOT in symbols:
                values[_PLACE] = symbols[_ROOT] + moved
        section = elf.get_section_by_name(".BTF")
        if section is None:
            notes.append(f"{path} has no type information (BTF): only symbols are taken from it")
        else:
            _add_types(values, Btf(section.data()))
    added = len(values) - len(info.values)
    notes.append(f"{added} values that VMCOREINFO lacks come from {path}")
    texts = {"OSRELEASE": release, **info.texts} if release is not None else info.texts
    return dataclasses.replace(info, values=values, texts=texts)


def with_root(info: Vmcoreinfo, tables: PageTables) -> Vmcoreinfo:
    """`info` with the root of the memory map, where VMCOREINFO lacks it and vmlinux said where it is kept."""
    place = info.values.get(_PLACE)
    if place is None or info.symbol(_ROOT) is not None:
        return info
    try:
        root = tables.read_u64(place)
    except VmcoreError:
        return info
    return dataclasses.replace(info, values={**info.values, ("SYMBOL", _ROOT): root})


def _open(path: Path) -> tuple[Any, Any]:
    # By name, so that it stays out of the capture image, which is made of all that the collector imports.
    try:
        elffile = importlib.import_module("elftools.elf.elffile")
        errors = importlib.import_module("elftools.common.exceptions")
    except ImportError as error:
        raise UnsupportedError("-x needs Python's module 'elftools'", hint="apt install python3-pyelftools") from error
    try:
        file = path.open("rb")
    except OSError as error:
        raise KdumpError(f"{path} cannot be opened: {os_reason(error)}") from error
    try:
        return elffile.ELFFile(file), file
    except (errors.ELFError, OSError) as error:
        file.close()
        raise KdumpError(f"{path} is not an ELF file", hint="-x takes an unpacked vmlinux") from error


def _release(elf: Any) -> str | None:
    section = elf.get_section_by_name(".rodata")
    found = _BANNER.search(section.data()) if section is not None and section["sh_type"] != "SHT_NOBITS" else None
    return found[1].decode("ascii", "replace") if found is not None else None


def _symbols(elf: Any, path: Path) -> dict[str, int]:
    table = elf.get_section_by_name(".symtab")
    if table is None:
        raise KdumpError(f"{path} has no symbols", hint="-x takes the vmlinux of the package with debug symbols")
    found = {}
    for name in (*_SYMBOLS, _ROOT):
        some = table.get_symbol_by_name(name)
        if some and len(some) == 1:
            found[name] = int(some[0]["st_value"])
    return found


def _moved_by(info: Vmcoreinfo, symbols: dict[str, int]) -> int | None:
    """How far KASLR moved the kernel."""
    moves = collections.Counter(
        value - symbols[name]
        for (kind, name), value in info.values.items()
        if kind == "SYMBOL" and name in symbols and value >> 63
    )
    if not moves and "KERNELOFFSET" in info.texts:
        try:
            return int(info.texts["KERNELOFFSET"], 16)
        except ValueError:
            return None
    return moves.most_common(1)[0][0] if moves else None


def _add_types(values: dict[tuple[str, str], int], types: Btf) -> None:
    for kind, names, ask in (("SIZE", _SIZES, types.size_of), ("OFFSET", _OFFSETS, types.offset_of),
                             ("NUMBER", _NUMBERS, types.enumerator)):  # fmt: skip
        for name in names:
            if (kind, name) not in values and (value := ask(name)) is not None:
                values[kind, name] = value
