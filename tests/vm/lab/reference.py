# SPDX-License-Identifier: GPL-2.0-or-later
"""What /proc/vmcore shows in the capture kernel, put together from outside while the guest stands still.

The crashed kernel left an ELF header in reserved memory (kernel: arch/x86/kernel/crash.c,
prepare_elf_headers) whose address is on the capture kernel's command line. With the guest's memory in a file,
the vmcore can be written from it as fs/proc/vmcore.c does: notes merged into one, then the memory ranges.
Programs that know nothing of the guest can then filter the very memory that the collector inside reads.
"""

from __future__ import annotations

import os
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

    `memory` is the file given as memory_file; `after` a mark on the console from before the crash.
    """
    found = guest.console.wait_for(r"Command line: .*\belfcorehdr=0x([0-9a-f]+)\s", timeout, after=after)
    guest.qmp("stop")
    try:
        with memory.open("rb", buffering=0) as file:
            _write(_Memory(file.fileno()), int(found[1], 16), wanted)
    finally:
        guest.qmp("cont")


class _Memory:
    """The guest's memory by physical address. Of a q35 with 2816 MiB or more, 2 GiB lie below 4 GiB."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._size = os.fstat(fd).st_size
        self._low = 2 << 30 if self._size >= 2816 << 20 else self._size

    def _place(self, paddr: int) -> int:
        return paddr if paddr < self._low else paddr - (4 << 30) + self._low

    def read(self, paddr: int, size: int) -> bytes:
        """No range of the vmcore crosses the hole below 4 GiB."""
        data = os.pread(self._fd, size, self._place(paddr))
        if len(data) != size:
            raise LabError(f"the guest has no {size} bytes of memory at {paddr:#x}")
        return data

    def next_filled(self, paddr: int, end: int) -> int:
        """Where the next data is that the file holds, from `paddr` on; the rest was never touched and is zero."""
        place = self._place(paddr)
        try:
            return min(end, paddr + os.lseek(self._fd, place, os.SEEK_DATA) - place)
        except OSError:
            return end  # ENXIO: no more data


def _write(ram: _Memory, header: int, wanted: Path) -> None:
    head = _EHDR.unpack(ram.read(header, _EHDR.size))
    if not head[0].startswith(b"\x7fELF"):
        raise LabError(f"no ELF header at {header:#x} of the guest's memory")
    table = [_PHDR.unpack(ram.read(header + head[5] + index * _PHDR.size, _PHDR.size)) for index in range(head[10])]
    notes = b"".join(_notes(ram.read(paddr, size)) for kind, _, _, _, paddr, size, _, _ in table if kind == _PT_NOTE)
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


def _notes(raw: bytes) -> bytes:
    """The notes up to the empty one that ends them (fs/proc/vmcore.c: update_note_header_size_elf64)."""
    place = 0
    while place + _NOTE.size <= len(raw):
        name, description, _ = _NOTE.unpack_from(raw, place)
        if name == 0:
            break
        place += _NOTE.size + (name + 3 & ~3) + (description + 3 & ~3)
    return raw[:place]


def _filled(ram: _Memory, paddr: int, size: int) -> Iterator[tuple[int, bytes]]:
    """The pieces of a range that hold anything but zeros: the file stays sparse."""
    end = paddr + size
    start = ram.next_filled(paddr, end)
    while start < end:
        data = ram.read(start, min(_CHUNK, end - start))
        if data.count(0) != len(data):
            yield start, data
        start = ram.next_filled(start + len(data), end)


def _up(size: int) -> int:
    return -(-size // _PAGE) * _PAGE
