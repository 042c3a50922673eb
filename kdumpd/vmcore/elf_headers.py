# SPDX-License-Identifier: GPL-2.0-or-later
"""The headers of an ELF core (elf(5)), also where they are damaged: memory that can be found is not given up.

A header is believed as it stands where all of it makes sense. Where it does not, the file still counts as a core if
its program headers lead to a VMCOREINFO note, which no other kind of file has; what had to be guessed is told.
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Callable
from pathlib import Path

from kdumpd.errors import VmcoreError
from kdumpd.vmcore.memory import PAGE_SIZE, Segment
from kdumpd.vmcore.notes import parse_notes
from kdumpd.vmcore.vmcoreinfo import machine_of

EM_X86_64 = 62
EM_AARCH64 = 183
MACHINES = {EM_X86_64: "x86_64", EM_AARCH64: "aarch64"}
PN_XNUM = 0xFFFF
FLAGS_OFFSET = 48  # of e_flags, 4 bytes
INCOMPLETE = 1  # a flag that makedumpfile leaves in e_flags

_MAGIC = b"\x7fELF"
_CLASS_AND_ORDER = b"\x02\x01"
_ET_CORE = 4
_PT_LOAD = 1
_PT_NOTE = 4
_NO_PADDR = (1 << 64) - 1  # /proc/kcore has it for what is in no one physical place, such as vmalloc
_PT_KNOWN = 8  # types below are of elf(5); none but the two above holds anything here
_EHDR = struct.Struct("<16sHHIQQQIHHHHHH")
_PHDR = struct.Struct("<IIQQQQQQ")
_MAX_PHNUM = 1 << 20
_MAX_NOTES = 64 << 20

_INFO_NAME = "VMCOREINFO"
_NHDR_SIZE = 12
_NOTES_WITHIN = 1 << 20

Read = Callable[[int, int], bytes]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Headers:
    """What the headers say. `doubts` are sentences on what was wrong in them; `flags` is e_flags."""

    machine: str
    segments: tuple[Segment, ...]
    notes_block: bytes
    flags: int
    doubts: tuple[str, ...]


def read_headers(path: Path, size: int, read: Read) -> Headers:
    """The headers of a file of `size` bytes; `read` (size, offset) gives what the file holds there, maybe less.

    Raises VmcoreError when this is no ELF core of memory.
    """
    raw = read(_EHDR.size, 0)
    if len(raw) < _EHDR.size:
        raise VmcoreError(f"{path} is not an ELF file")
    ident, kind, machine, _, _, phoff, shoff, flags, _, phentsize, phnum, _, _, _ = _EHDR.unpack(raw)
    if phnum == PN_XNUM and shoff:
        # elf(5): the real count is in sh_info of section 0.
        phnum = int.from_bytes(read(4, shoff + 44), "little")
    complaint: str | None = None
    if ident[:4] != _MAGIC:
        complaint = f"{path} is not an ELF file"
    elif ident[4:6] != _CLASS_AND_ORDER or kind != _ET_CORE:
        complaint = f"{path} is not a 64-bit little-endian core file"
    elif machine not in MACHINES:
        complaint = f"{path} is of machine {machine}, which this version cannot read"
    elif phentsize != _PHDR.size:
        complaint = f"{path} has program headers of {phentsize} bytes, not {_PHDR.size}"
    elif phnum > _MAX_PHNUM:
        complaint = f"{path} claims {phnum} program headers"
    else:
        segments, notes, doubts = _follow(read(phnum * _PHDR.size, phoff), size, read)
        if segments:
            return Headers(machine=MACHINES[machine], segments=segments, notes_block=notes, flags=flags, doubts=doubts)
        complaint = f"{path} holds no memory"
    return _salvaged(complaint, flags, MACHINES.get(machine), size, read)


def _follow(table: bytes, size: int, read: Read) -> tuple[tuple[Segment, ...], bytes, tuple[str, ...]]:
    """Segments of memory, notes and doubts of a table of program headers."""
    segments: list[Segment] = []
    notes = b""
    doubts: list[str] = []
    for fields in _PHDR.iter_unpack(table[: len(table) // _PHDR.size * _PHDR.size]):
        kind, _, offset, vaddr, paddr, filesz, memsz, _ = fields
        if kind == _PT_NOTE:
            notes += read(min(filesz, _MAX_NOTES), offset)
            continue
        if kind != _PT_LOAD:
            if not _was_load(fields, size):
                continue
            doubts.append(f"a program header of unknown type {kind:#x} is taken for memory at physical {paddr:#x}")
        if memsz and paddr != _NO_PADDR:
            segments.append(Segment(vaddr=vaddr, paddr=paddr, offset=offset, filesz=filesz, memsz=memsz))
    return tuple(segments), notes, tuple(doubts)


def _was_load(fields: tuple[int, ...], size: int) -> bool:
    """Whether a type that nobody defined, of whole pages that are in the file, is a PT_LOAD that was damaged."""
    kind, _, offset, _, _, filesz, memsz, _ = fields
    return kind >= _PT_KNOWN and filesz == memsz and PAGE_SIZE <= filesz <= size - offset and offset % PAGE_SIZE == 0


def _salvaged(complaint: str, flags: int, machine: str | None, size: int, read: Read) -> Headers:
    """The headers of a core whose ELF header is damaged: program headers follow it, as the kernel and QEMU write
    them. Raises VmcoreError with the complaint when there is no memory behind them, or no VMCOREINFO note."""
    table = b""
    while len(table) < _MAX_PHNUM * _PHDR.size:
        entry = read(_PHDR.size, _EHDR.size + len(table))
        if len(entry) < _PHDR.size:
            break
        fields = _PHDR.unpack(entry)
        # The notes come first: another type there is damage.
        if table and fields[0] not in (_PT_LOAD, _PT_NOTE) and not _was_load(fields, size):
            break
        table += entry
    segments, notes, doubts = _follow(table, size, read)
    info = next((note for note in parse_notes(notes) if note.name == _INFO_NAME), None)
    if info is None:
        notes = _searched_note(read)
        info = next((note for note in parse_notes(notes) if note.name == _INFO_NAME), None)
    if info is None or not segments:
        raise VmcoreError(complaint)
    if machine is None:
        machine = machine_of(info.description)
    if machine is None:
        raise VmcoreError(complaint)
    guess = f"{complaint}, says its header; it is read as a core of {machine}, since it has program headers and notes"
    return Headers(machine=machine, segments=segments, notes_block=notes, flags=flags, doubts=(guess, *doubts))


def _searched_note(read: Read) -> bytes:
    """The VMCOREINFO note, found by its name near the start of the file; b"" when it is not there."""
    head = read(_NOTES_WITHIN, 0)
    at = head.find(_INFO_NAME.encode() + b"\0")
    return head[at - _NHDR_SIZE :] if at >= _NHDR_SIZE else b""
