# SPDX-License-Identifier: GPL-2.0-or-later
"""What /proc/vmcore shows in the capture kernel, put together from outside while the guest stands still.

The crashed kernel left an ELF header in reserved memory (kernel: arch/x86/kernel/crash.c,
prepare_elf_headers) whose address is on the capture kernel's command line. With the guest's memory in a file,
the vmcore can be written from it as fs/proc/vmcore.c does: notes merged into one, then the memory ranges.
Programs that know nothing of the guest can then filter the very memory that the collector inside reads.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from pathlib import Path

from .aptroot import LabError
from .qemu import Machine

_EHDR = struct.Struct("<16sHHIQQQIHHHHHH")
_PHDR = struct.Struct("<IIQQQQQQ")
_NOTE = struct.Struct("<III")
_PT_LOAD, _PT_NOTE = 1, 4
_PAGE = 4096
_CHUNK = 1 << 20


def save_raw_vmcore(guest: Machine, memory: Path, wanted: Path, *, after: int, timeout: float) -> None:
    """Stops `guest` as its capture kernel starts, writes its crashed memory to `wanted`, lets it run on.

    `memory` is the file given as memory_file; `after` a mark on the console from before the crash. Guest
    memory has to lie in one piece from address 0 (q35: up to 2816 MiB).
    """
    found = guest.console.wait_for(r"Command line: .*\belfcorehdr=0x([0-9a-f]+)\s", timeout, after=after)
    guest.qmp("stop")
    try:
        with memory.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as ram:
            _write(ram, int(found[1], 16), wanted)
    finally:
        guest.qmp("cont")


def _write(ram: mmap.mmap, header: int, wanted: Path) -> None:
    head = _EHDR.unpack_from(ram, header)
    if not head[0].startswith(b"\x7fELF"):
        raise LabError(f"no ELF header at {header:#x} of the guest's memory")
    table = [_PHDR.unpack_from(ram, header + head[5] + index * _PHDR.size) for index in range(head[10])]
    notes = b"".join(_notes(ram, paddr, size) for kind, _, _, _, paddr, size, _, _ in table if kind == _PT_NOTE)
    loads = [entry for entry in table if entry[0] == _PT_LOAD]
    notes_at = _up(_EHDR.size + _PHDR.size * (1 + len(loads)))
    offset = notes_at + _up(len(notes))
    out = [_PHDR.pack(_PT_NOTE, 0, notes_at, 0, 0, len(notes), len(notes), 0)]
    copies = []
    for _, flags, _, vaddr, paddr, _, size, _ in loads:
        out.append(_PHDR.pack(_PT_LOAD, flags, offset, vaddr, paddr, size, size, 0))
        copies.append((paddr, size, offset))
        offset += size
    fields = list(head)
    fields[5], fields[10] = _EHDR.size, len(out)
    with wanted.open("wb") as file:
        file.write(_EHDR.pack(*fields) + b"".join(out))
        file.seek(notes_at)
        file.write(notes)
        for paddr, size, place in copies:
            for start, data in _filled(ram, paddr, size):
                file.seek(place + start - paddr)
                file.write(data)
        file.truncate(offset)


def _notes(ram: mmap.mmap, paddr: int, size: int) -> bytes:
    """The notes at `paddr` up to the empty one that ends them (fs/proc/vmcore.c: update_note_header_size_elf64)."""
    place = paddr
    while place + _NOTE.size <= paddr + size:
        name, description, _ = _NOTE.unpack_from(ram, place)
        if name == 0:
            break
        place += _NOTE.size + (name + 3 & ~3) + (description + 3 & ~3)
    return ram[paddr:place]


def _filled(ram: mmap.mmap, paddr: int, size: int) -> Iterator[tuple[int, bytes]]:
    """The pieces of a range that hold anything but zeros: the file stays sparse."""
    for start in range(paddr, paddr + size, _CHUNK):
        data = ram[start : min(start + _CHUNK, paddr + size)]
        if data.count(0) != len(data):
            yield start, data


def _up(size: int) -> int:
    return -(-size // _PAGE) * _PAGE
