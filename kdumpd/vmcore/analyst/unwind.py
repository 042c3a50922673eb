# SPDX-License-Identifier: GPL-2.0-or-later
"""What a backtrace needs besides the stack: for each address of code on it the unwind tables and the code.

x86_64 kernels carry ORC tables (linux: arch/x86/kernel/unwind_orc.c): a lookup table with one entry for each 256
bytes of text leads to the sorted addresses and to the entries that belong to them.
"""

from __future__ import annotations

import numpy as np

from kdumpd.errors import VmcoreError
from kdumpd.vmcore.analyst.kernel import Kernel
from kdumpd.vmcore.analyst.wanted import DISASSEMBLED, FUNCTIONS
from kdumpd.vmcore.arrays import NDArray, unique
from kdumpd.vmcore.memory import PAGE_SIZE

Words = NDArray[np.uint64]
_BLOCK_SHIFT = 8
_ORC_ENTRY = 6
# How far before an address its function is looked for: where that is not known, and where it is.
_FUNCTION = 1024
_MAX_FUNCTION = 16384
# Where crash has no unwind tables it lets gdb print as many instructions as there are bytes up to the address.
_READ_AHEAD = 5
_DISASSEMBLY = 20480
_LINE = 64


def keep_functions(kernel: Kernel) -> None:
    """The functions that crash looks at when it opens a dump."""
    for name in FUNCTIONS:
        if (address := kernel.symbol(name)) is not None:
            kernel.trace.keep(address, _DISASSEMBLY if name in DISASSEMBLED else _LINE)


def code_on(kernel: Kernel, stacks: list[tuple[int, int]]) -> Words:
    """The words in the parts [start, end) of stacks that could be addresses of code, unique, ascending."""
    begin, end = np.uint64(kernel.need("_stext")), np.uint64(kernel.need("_etext"))
    found: list[Words] = []
    for start, stop in stacks:
        # Page by page: the upper part of a stack is what counts, and below the lower end lies an unmapped guard.
        for at in range(start, stop, PAGE_SIZE):
            try:
                words = np.frombuffer(kernel.trace.read(at, min(PAGE_SIZE, stop - at)), dtype="<u8")
            except VmcoreError:
                continue
            found.append(words[(words >= begin) & (words < end)])
    fixed = [address for name in FUNCTIONS if (address := kernel.symbol(name)) is not None]
    found.append(np.array(fixed, dtype=np.uint64))
    return unique(np.concatenate(found))


def after_calls(kernel: Kernel, code: Words) -> Words:
    """Those of `code` that a call would return to, and the fixed ones."""
    fixed = {kernel.symbol(name) for name in FUNCTIONS}
    return code[[address in fixed or _after_call(kernel, address) for address in code.tolist()]]


def _after_call(kernel: Kernel, address: int) -> bool:
    """Whether a call ends at `address`; where that is not known for the architecture, it could be one."""
    if kernel.trace.machine != "x86_64":
        return True
    try:
        before = kernel.peek(address - 7, 7)
    except VmcoreError:
        return False
    # call rel32, or FF /2 through a register or memory, whose length tells where its opcode is (Intel SDM vol. 2).
    return before[2] == 0xE8 or any(
        before[-size] == 0xFF and before[1 - size] >> 3 & 7 == 2 for size in (2, 3, 4, 6, 7)
    )


def keep_orc(kernel: Kernel, code: Words) -> None:
    """The pages of the ORC tables in which an unwinder looks for `code`; nothing where a kernel has frame pointers."""
    if kernel.symbol("orc_lookup") is None:
        return
    text = kernel.need("_stext")
    lookup = kernel.need("orc_lookup")
    addresses, entries = kernel.need("__start_orc_unwind_ip"), kernel.need("__start_orc_unwind")
    count = (kernel.need("__stop_orc_unwind_ip") - addresses) // 4
    blocks = unique((code - np.uint64(text)) >> np.uint64(_BLOCK_SHIFT))
    for block in blocks.tolist():
        try:
            raw = kernel.trace.read(lookup + block * 4, 8)
        except VmcoreError:
            continue
        first, last = int.from_bytes(raw[:4], "little"), int.from_bytes(raw[4:], "little") + 1
        if not first <= last <= count or last - first > PAGE_SIZE:
            continue
        kernel.trace.keep(addresses + first * 4, (last - first) * 4 + 4)
        kernel.trace.keep(entries + first * _ORC_ENTRY, (last - first + 1) * _ORC_ENTRY)


def keep_code(kernel: Kernel, code: Words) -> None:
    """The text of the functions around `code`, from where each begins: there a disassembler has to start."""
    begins = kernel.function_starts
    if len(begins):
        starts = begins[np.maximum(np.searchsorted(begins, code, side="right"), 1) - 1]
        starts = np.maximum(np.minimum(starts, code), code - np.minimum(code, np.uint64(_MAX_FUNCTION)))
    else:
        starts = code - np.minimum(code, np.uint64(_FUNCTION))
    for start, address in zip(starts.tolist(), code.tolist(), strict=True):
        kernel.trace.keep(start, (address - start) * _READ_AHEAD + _LINE)
