# SPDX-License-Identifier: GPL-2.0-or-later
"""What the dynamic section of an ELF file says, read with every bound checked (elf(5), System V ABI chapters 4 and 5).

An image has a hundred such files, and each is looked at when it is gathered and when it is checked: pyelftools take a
third of a second for them, and 7 MB.
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Iterator

from kdumpd.errors import BuildError

_PT_LOAD, _PT_DYNAMIC, _PT_INTERP = 1, 2, 3
_DT_NULL, _DT_NEEDED, _DT_STRTAB, _DT_SONAME, _DT_RPATH, _DT_RUNPATH = 0, 1, 5, 14, 15, 29
# e_machine as pyelftools, readelf and the headers of libc spell it.
_MACHINES = {
    3: "EM_386", 20: "EM_PPC", 21: "EM_PPC64", 22: "EM_S390", 40: "EM_ARM", 62: "EM_X86_64", 183: "EM_AARCH64",
    243: "EM_RISCV", 258: "EM_LOONGARCH",
}  # fmt: skip


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ElfFacts:
    """The dynamic section in short; `machine` is e_machine with the ELF class, 32 or 64."""

    machine: tuple[str, int]
    interpreter: str | None
    soname: str | None
    needed: tuple[str, ...]
    runpath: tuple[str, ...]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Segment:
    kind: int
    offset: int
    address: int
    size: int


def parse_elf(data: bytes, name: str) -> ElfFacts | None:
    """The facts of the ELF file `data`, None for anything else. Raises BuildError for a broken one."""
    if not data.startswith(b"\x7fELF"):
        return None
    try:
        return _parse(data)
    except (struct.error, ValueError, KeyError, IndexError) as error:
        raise BuildError(f"{name} is a damaged ELF file: {error}", hint="install its package again") from error


def _parse(data: bytes) -> ElfFacts:
    bits = {1: 32, 2: 64}[data[4]]
    order = {1: "<", 2: ">"}[data[5]]
    machine = struct.unpack_from(f"{order}H", data, 18)[0]
    segments = list(_segments(data, bits, order))
    interpreter = None
    needed: list[str] = []
    runpath: list[str] = []
    soname = None
    for segment in segments:
        if segment.kind == _PT_INTERP:
            interpreter = _string(data, segment.offset, segment.offset + segment.size)
        elif segment.kind == _PT_DYNAMIC:
            tags = list(_tags(data, segment, bits, order))
            strings = next((value for tag, value in tags if tag == _DT_STRTAB), None)
            for tag, value in tags:
                if tag not in (_DT_NEEDED, _DT_SONAME, _DT_RPATH, _DT_RUNPATH):
                    continue
                if strings is None:
                    raise ValueError("it has no table of names")
                text = _string(data, _offset(strings, segments) + value, len(data))
                if tag == _DT_NEEDED:
                    needed.append(text)
                elif tag == _DT_SONAME:
                    soname = text
                else:
                    runpath.extend(text.split(":"))
    return ElfFacts(
        machine=(_MACHINES.get(machine, f"EM_{machine}"), bits),
        interpreter=interpreter,
        soname=soname,
        needed=tuple(needed),
        runpath=tuple(runpath),
    )


def _segments(data: bytes, bits: int, order: str) -> Iterator[_Segment]:
    wide = bits == 64
    (table,) = struct.unpack_from(f"{order}Q" if wide else f"{order}I", data, 32 if wide else 28)
    size, count = struct.unpack_from(f"{order}HH", data, 54 if wide else 42)
    for index in range(count):
        at = table + index * size
        if wide:
            kind, _, offset, address, _, length = struct.unpack_from(f"{order}IIQQQQ", data, at)
        else:
            kind, offset, address, _, length = struct.unpack_from(f"{order}IIIII", data, at)
        if kind in (_PT_LOAD, _PT_DYNAMIC, _PT_INTERP):
            if offset + length > len(data):
                raise ValueError(f"it ends at byte {len(data)}, a segment of it at {offset + length}")
            yield _Segment(kind=kind, offset=offset, address=address, size=length)


def _tags(data: bytes, segment: _Segment, bits: int, order: str) -> Iterator[tuple[int, int]]:
    entry = struct.Struct(f"{order}qQ" if bits == 64 else f"{order}iI")
    for at in range(segment.offset, segment.offset + segment.size - entry.size + 1, entry.size):
        tag, value = entry.unpack_from(data, at)
        if tag == _DT_NULL:
            return
        yield tag, value


def _offset(address: int, segments: list[_Segment]) -> int:
    """Where in the file what is mapped at `address` lies."""
    for segment in segments:
        if segment.kind == _PT_LOAD and segment.address <= address < segment.address + segment.size:
            return address - segment.address + segment.offset
    raise ValueError(f"nothing is mapped at {address:#x}")


def _string(data: bytes, start: int, limit: int) -> str:
    end = data.find(b"\0", start, limit)
    if end < 0:
        raise ValueError(f"the name at byte {start} does not end")
    return data[start:end].decode()
