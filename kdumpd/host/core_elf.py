# SPDX-License-Identifier: GPL-2.0-or-later
"""The ELF core header that becomes /proc/vmcore, made by ourselves for kexec_load(2).

Its form is that of crash_prepare_elf64_headers() in kernel/crash_core.c: a note for each processor, one for VMCOREINFO,
the kernel's text, then the memory of the machine without what is reserved for the capture kernel.
"""

from __future__ import annotations

import dataclasses
import mmap
import re
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path

from kdumpd.errors import LoadError, UnsupportedError
from kdumpd.host.core_header import ProgramHeader
from kdumpd.host.files import read_text
from kdumpd.host.kcore import KernelMap, read_kernel_map
from kdumpd.host.reservation import MemoryRange, parse_iomem

_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_PROGRAM_HEADER = struct.Struct("<IIQQQQQQ")
_IDENT = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
_ET_CORE, _PT_LOAD, _PT_NOTE = 4, 1, 4
_RWX = 7
_MACHINES = {"x86_64": 62, "aarch64": 183}
_MODULUS = 1 << 64
TEXT_NAME = "kernel text"
_CPU = re.compile(r"cpu(\d+)")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class MachineMemory:
    """What a core of this machine consists of. `notes` are (physical address, bytes), VMCOREINFO's the last."""

    ram: tuple[MemoryRange, ...]
    reserved: tuple[MemoryRange, ...]
    text: MemoryRange | None
    notes: tuple[tuple[int, int], ...]
    kernel: KernelMap


def read_machine_memory(root: Path = Path("/")) -> MachineMemory:
    """From /proc/iomem, /proc/kcore and sysfs. Raises LoadError, or UnsupportedError when this kernel does not tell."""
    iomem = read_text(root, "/proc/iomem") or ""
    ram = parse_iomem(iomem, "System RAM")
    if not ram:
        raise LoadError("/proc/iomem shows no addresses to this process (CAP_SYS_ADMIN)", hint="run it as root")
    code = parse_iomem(iomem, "Kernel code")
    data = parse_iomem(iomem, "Kernel data")
    return MachineMemory(
        ram=ram,
        reserved=parse_iomem(iomem, "Crash kernel"),
        text=MemoryRange(start=code[0].start, last=max(span.last for span in (*code, *data))) if code else None,
        notes=(*_cpu_notes(root), _vmcoreinfo_note(root)),
        kernel=read_kernel_map(ram, root),
    )


def _cpu_notes(root: Path) -> Iterator[tuple[int, int]]:
    folder = root / "sys/devices/system/cpu"
    cpus = sorted(int(found[1]) for path in folder.glob("cpu*") if (found := _CPU.fullmatch(path.name)))
    for cpu in cpus:
        place = f"/sys/devices/system/cpu/cpu{cpu}"
        address, size = read_text(root, f"{place}/crash_notes"), read_text(root, f"{place}/crash_notes_size")
        if address is None or size is None:
            raise UnsupportedError(
                f"this kernel does not say where processor {cpu} leaves its registers ({place}/crash_notes)",
                hint="use a kernel with CONFIG_KEXEC and CONFIG_CRASH_DUMP",
            )
        yield int(address, 16), int(size)
    if not cpus:
        raise UnsupportedError("this kernel lists no processors in /sys/devices/system/cpu", hint="mount /sys")


def _vmcoreinfo_note(root: Path) -> tuple[int, int]:
    words = (read_text(root, "/sys/kernel/vmcoreinfo") or "").split()
    if len(words) != 2:
        raise UnsupportedError(
            "this kernel does not say where its VMCOREINFO lies (/sys/kernel/vmcoreinfo)",
            hint="use a kernel with CONFIG_CRASH_DUMP",
        )
    return int(words[0], 16), int(words[1], 16)


def without(
    ram: Sequence[MemoryRange], taken: Sequence[MemoryRange], page_size: int = mmap.PAGESIZE
) -> Iterator[MemoryRange]:
    """`ram` in whole pages, in its order, without what is `taken`.

    /proc/vmcore shows the whole of each page in which a part begins or ends: what is beside memory must not be read.
    """
    for span in ram:
        start, end = -(-span.start // page_size) * page_size, (span.last + 1) // page_size * page_size
        for hole in sorted(taken, key=lambda hole: hole.start):
            if hole.last < start or hole.start >= end:
                continue
            if hole.start > start:
                yield MemoryRange(start=start, last=hole.start - 1)
            start = hole.last + 1
        if start < end:
            yield MemoryRange(start=start, last=end - 1)


def make_core(memory: MachineMemory, arch: str) -> bytes:
    """The header as it lies in memory: ELF header and program headers."""
    rows: list[tuple[int, ...]] = [(_PT_NOTE, 0, address, 0, address, size, size, 0) for address, size in memory.notes]
    # On arm64 the kernel's own addresses follow another rule than the direct map.
    offset = memory.kernel.number("kimage_voffset")
    if memory.text is not None and offset is not None:
        rows.append(_load(memory.text, offset))
    rows += [_load(span, memory.kernel.direct_offset) for span in without(memory.ram, memory.reserved)]
    header = _HEADER.pack(
        _IDENT, _ET_CORE, _MACHINES[arch], 1, 0, _HEADER.size, 0, 0, _HEADER.size, _PROGRAM_HEADER.size, len(rows),
        0, 0, 0,
    )  # fmt: skip
    return header + b"".join(_PROGRAM_HEADER.pack(*row) for row in rows)


def _load(span: MemoryRange, offset: int) -> tuple[int, ...]:
    size = span.size_bytes
    return (_PT_LOAD, _RWX, span.start, (span.start + offset) % _MODULUS, span.start, size, size, 0)


def parse_core(data: bytes, text: MemoryRange | None) -> tuple[ProgramHeader, ...]:
    """The program headers in `data`, read back from its bytes for `core_header` to judge."""
    head = _HEADER.unpack_from(data)
    found = []
    for kind, _, offset, vaddr, paddr, file_bytes, memory_bytes, _ in _PROGRAM_HEADER.iter_unpack(
        data[head[5] : head[5] + head[9] * head[10]]
    ):
        is_text = text is not None and kind == _PT_LOAD and (paddr, memory_bytes) == (text.start, text.size_bytes)
        found.append(
            ProgramHeader(
                name=TEXT_NAME if is_text else "", kind=kind, offset=offset, paddr=paddr, vaddr=vaddr,
                file_bytes=file_bytes, memory_bytes=memory_bytes,
            )
        )  # fmt: skip
    return tuple(found)
