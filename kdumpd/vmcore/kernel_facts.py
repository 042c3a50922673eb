# SPDX-License-Identifier: GPL-2.0-or-later
"""What is known of a kernel's structures: where members lie, how large things are, where its symbols are.

VMCOREINFO tells what the memory map and the log need. Tasks, stacks and modules need more, which comes from the
kernel's own type information (BTF) and symbol table: either stored in the image when it was built for the running
kernel, or read from the dead kernel's memory.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from kdumpd.errors import VmcoreError, os_reason
from kdumpd.vmcore.analyst.wanted import ENUMERATORS, MEMBERS, SIZES, SYMBOLS
from kdumpd.vmcore.arrays import NDArray
from kdumpd.vmcore.btf import MAX_BLOB, Btf
from kdumpd.vmcore.kallsyms import Kallsyms, Memory, Tables, starts
from kdumpd.vmcore.vmcoreinfo import Vmcoreinfo

STORED = Path("/etc/kdumpd/kernel.json")
_VERSION = 1
_KERNEL_HALF = 1 << 63
_WORD = (1 << 64) - 1
_MAX_STORED = 1 << 20
_SEARCHED = 64 << 20  # of the kernel image, for its symbol table
# By these the coding of kallsyms is found out. VMCOREINFO names more, but some of them are no symbols.
_CALIBRATION = ("_stext", "init_uts_ns")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class KernelFacts:
    """Facts of one kernel build; the same for each boot of it, whatever KASLR does.

    `offsets` maps "struct.member" to bytes from the start of the struct, `sizes` maps "struct" to bytes, `values` maps
    enumerators to their value, `symbols` maps names to bytes from `_stext`. `absolute` holds the symbols that do not
    move with the kernel: per-cpu variables of kernels that count them from zero. `source` says where all come from.
    """

    release: str
    build_id: str | None
    offsets: Mapping[str, int]
    sizes: Mapping[str, int]
    values: Mapping[str, int]
    symbols: Mapping[str, int]
    absolute: Mapping[str, int]
    source: str

    def to_json(self) -> str:
        """The text that `parse_facts` reads back: the same for the same facts."""
        content = {key: value for key, value in dataclasses.asdict(self).items() if key != "source"}
        return json.dumps({"version": _VERSION, **content}, indent=1, sort_keys=True) + "\n"


def gather(
    *, release: str, build_id: str | None, btf: Btf | None, symbols: Mapping[str, int], source: str
) -> KernelFacts:
    """The facts that BTF and a symbol table (name -> run-time address) hold; either may be lacking."""
    stext = symbols.get("_stext")
    found = {
        kind: {} if btf is None else {name: value for name in names if (value := ask(btf, name)) is not None}
        for kind, names, ask in (
            ("offsets", MEMBERS, Btf.offset_of),
            ("sizes", SIZES, Btf.size_of),
            ("values", ENUMERATORS, Btf.enumerator),
        )
    }
    relative: dict[str, int] = {}
    absolute: dict[str, int] = {}
    for name in SYMBOLS:
        address = symbols.get(name)
        if address is None:
            continue
        if address < _KERNEL_HALF:
            absolute[name] = address
        elif stext is not None:
            relative[name] = address - stext
    return KernelFacts(
        release=release,
        build_id=build_id,
        offsets=found["offsets"],
        sizes=found["sizes"],
        values=found["values"],
        symbols=relative,
        absolute=absolute,
        source=source,
    )


def parse_facts(text: bytes, source: str) -> KernelFacts:
    """What `to_json` wrote. Raises VmcoreError when it is something else."""
    try:
        content: Any = json.loads(text)
        if not isinstance(content, dict) or content.get("version") != _VERSION:
            raise VmcoreError(f"{source} is of another version")
        build_id = content["build_id"]
        maps = {name: _numbers(content[name]) for name in ("offsets", "sizes", "values", "symbols", "absolute")}
        return KernelFacts(
            release=str(content["release"]), build_id=None if build_id is None else str(build_id), source=source, **maps
        )
    except (ValueError, TypeError, LookupError, RecursionError) as error:
        raise VmcoreError(f"{source} does not hold kernel facts: {error}") from error


def _numbers(content: Any) -> dict[str, int]:
    if not isinstance(content, dict) or not all(type(value) is int for value in content.values()):
        raise TypeError("a map of names to numbers was expected")
    return content


def stored_facts(path: Path, info: Vmcoreinfo) -> KernelFacts | None:
    """The facts in the image, None when there are none. Raises VmcoreError when they are not of this kernel."""
    try:
        with path.open("rb") as file:
            text = file.read(_MAX_STORED)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise VmcoreError(f"{path} cannot be read: {os_reason(error)}") from error
    facts = parse_facts(text, str(path))
    build_id = info.texts.get("BUILD-ID")
    for what, theirs, ours in (("release", info.release, facts.release), ("build id", build_id, facts.build_id)):
        if theirs is not None and ours is not None and theirs != ours:
            raise VmcoreError(f"{path} is of another kernel: {what} {ours}, the dead kernel's is {theirs}")
    return facts


def facts_of_memory(memory: Memory, info: Vmcoreinfo) -> KernelFacts:
    """The facts that the dead kernel's own tables give. Raises VmcoreError when they cannot be found or read."""
    symbols = Kallsyms(memory, _tables(memory, info), _known(info), SYMBOLS).symbols
    begin, end = symbols.get("__start_BTF", 0), symbols.get("__stop_BTF", 0)
    if not 0 < end - begin <= MAX_BLOB:
        raise VmcoreError("the dead kernel carries no type information (BTF)")
    return gather(
        release=info.release or "",
        build_id=info.texts.get("BUILD-ID"),
        btf=Btf(memory.read(begin, end - begin), {*SIZES, *(path.partition(".")[0] for path in MEMBERS)}),
        symbols=symbols,
        source="the dead kernel's memory",
    )


def function_starts(memory: Memory, info: Vmcoreinfo) -> NDArray[np.uint64]:
    """Where the kernel's functions begin, ascending. Raises VmcoreError where no symbol table can be read."""
    return starts(memory, _tables(memory, info), _known(info).values())


def _known(info: Vmcoreinfo) -> dict[str, int]:
    return {name: value for name in _CALIBRATION if (value := info.symbol(name)) is not None}


def _tables(memory: Memory, info: Vmcoreinfo) -> Tables:
    if info.symbol("kallsyms_names") is not None:
        return Tables.of(info)
    from kdumpd.vmcore.kallsyms_search import find_tables  # before 6.0 only

    stext = info.symbol("_stext")
    if stext is None:
        raise VmcoreError("VMCOREINFO has neither SYMBOL(kallsyms_names) nor SYMBOL(_stext)")
    return find_tables(memory, stext, stext + _SEARCHED)


def find_facts(memory: Memory, info: Vmcoreinfo, notes: list[str], stored: Path = STORED) -> KernelFacts | None:
    """Stored facts where they are of this kernel, else those in its memory, else None; `notes` says why."""
    try:
        facts = stored_facts(stored, info)
        if facts is not None and facts.offsets and facts.symbols:
            return facts
    except VmcoreError as error:
        notes.append(f"the stored kernel facts are not used: {error}")
    try:
        return facts_of_memory(memory, info)
    except VmcoreError as error:
        notes.append(f"the kernel's structures are not known: {error}")
    return None
