# SPDX-License-Identifier: GPL-2.0-or-later
"""The ELF core header that kexec-tools made for a capture kernel: does it describe this machine's memory?

With kexec_load(2) user space writes the header that becomes /proc/vmcore, and kexec-tools is known to write nonsense
and to end with 0: its arm64 loader without `_text` in /proc/kallsyms gives addresses that no capture kernel can read.
The kernel lets nobody read the loaded segments back, so `kexec -d`, which prints each program header, is the witness.
Pure: text in, judgement out.
"""

from __future__ import annotations

import dataclasses
import mmap
import re
from collections.abc import Iterator, Sequence

from kdumpd.host.reservation import MemoryRange

# dbgprintf_phdr() in kexec-tools, kexec/crashdump-elf.c
_HEADER = re.compile(
    r"^(?P<name>[^:\n]*): p_type = (?P<type>\d+), p_offset = 0x(?P<offset>[0-9a-f]+) p_paddr = 0x(?P<paddr>[0-9a-f]+) "
    r"p_vaddr = 0x(?P<vaddr>[0-9a-f]+) p_filesz = 0x(?P<filesz>[0-9a-f]+) p_memsz = 0x(?P<memsz>[0-9a-f]+)",
    re.MULTILINE,
)
# What it complains of, whether it goes on then or not; and which of it makes addresses a guess.
_COMPLAINT = re.compile(r"^(Can't|Can ?not) (get|find|read|open) .*$", re.MULTILINE)
_GUESSED = re.compile(r"\b_s?text\b|page_offset|VA_BITS|phys_offset|/proc/kcore", re.IGNORECASE)
_PT_LOAD, _PT_NOTE = 1, 4
_KERNEL_HALF = 1 << 63
_PAGE = mmap.PAGESIZE  # of this kernel, which is the one that is described


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ProgramHeader:
    """One entry, sizes and addresses in bytes; `name` is what kexec-tools calls it."""

    name: str
    kind: int
    offset: int
    paddr: int
    vaddr: int
    file_bytes: int
    memory_bytes: int

    @property
    def is_text(self) -> bool:
        """True for the entry of the kernel's text, whose virtual address lies outside of the direct map."""
        return "text" in self.name.lower()


def parse_headers(debug: str) -> tuple[ProgramHeader, ...]:
    """The program headers in the output of `kexec -d`."""
    return tuple(
        ProgramHeader(
            name=found["name"].strip(),
            kind=int(found["type"]),
            offset=int(found["offset"], 16),
            paddr=int(found["paddr"], 16),
            vaddr=int(found["vaddr"], 16),
            file_bytes=int(found["filesz"], 16),
            memory_bytes=int(found["memsz"], 16),
        )
        for found in _HEADER.finditer(debug)
    )


def parse_complaints(debug: str) -> tuple[str, ...]:
    """The lines in which kexec-tools says that it could not find something out."""
    return tuple(found[0].strip() for found in _COMPLAINT.finditer(debug))


def parse_guesses(debug: str) -> tuple[str, ...]:
    """Those of its complaints after which the addresses in the header are guesses."""
    return tuple(line for line in parse_complaints(debug) if _GUESSED.search(line))


def header_problems(
    headers: Sequence[ProgramHeader], ram: Sequence[MemoryRange], reserved: Sequence[MemoryRange]
) -> tuple[str, ...]:
    """Why a core with these headers could not be read; empty when it makes sense.

    `ram` is "System RAM" of /proc/iomem and `reserved` "Crash kernel", both with real addresses.
    """
    if not headers:
        return ("it has no program headers at all",)
    return tuple(_problems(headers, ram, reserved))


def _problems(
    headers: Sequence[ProgramHeader], ram: Sequence[MemoryRange], reserved: Sequence[MemoryRange]
) -> Iterator[str]:
    loads = [header for header in headers if header.kind == _PT_LOAD]
    for header in headers:
        where = f"{header.name or 'an entry'} at {header.paddr:#x}, {header.memory_bytes:#x} bytes"
        if header.kind == _PT_NOTE and header.paddr == 0:
            yield f"{where}: the notes have no address"
        if header.kind != _PT_LOAD:
            continue
        if header.memory_bytes == 0 or header.file_bytes != header.memory_bytes:
            yield f"{where}: its size makes no sense"
        elif header.paddr + header.memory_bytes > 1 << 64 or header.vaddr + header.memory_bytes > 1 << 64:
            yield f"{where}: it reaches beyond the end of addresses"
        elif not all(_inside(start, start + header.memory_bytes - 1, ram) for start in (header.paddr, header.offset)):
            # /proc/vmcore reads at p_offset, which is another place for the first MiB that was saved elsewhere.
            yield f"{where}: that is not memory of this machine"
        elif header.vaddr < _KERNEL_HALF:
            yield f"{where}: {header.vaddr:#x} is no address of a kernel"
    offsets = {header.vaddr - header.paddr for header in loads if not header.is_text}
    if len(offsets) > 1:
        yield "its virtual addresses do not follow one direct map"
    yield from _missing(loads, ram, reserved)


def _inside(start: int, last: int, ranges: Sequence[MemoryRange]) -> bool:
    """True when the span lies in RAM, up to the bytes by which ranges are rounded to whole pages."""
    for span in _joined(ranges):
        if span.start // _PAGE * _PAGE <= start and last <= -(-(span.last + 1) // _PAGE) * _PAGE - 1:
            return True
    return False


def _missing(
    loads: Sequence[ProgramHeader], ram: Sequence[MemoryRange], reserved: Sequence[MemoryRange]
) -> Iterator[str]:
    """RAM above the first MiB (which has a backup of its own) and outside of the reservation has to be in the core."""
    wanted = sum(span.size_bytes for span in _joined(ram) if span.start >= 1 << 20)
    wanted -= sum(span.size_bytes for span in reserved)
    held = sum(header.memory_bytes for header in loads if not header.is_text and header.paddr >= 1 << 20)
    if held < wanted * 0.95:
        yield f"it describes {held >> 20} MiB of memory, the machine has {wanted >> 20} MiB"


def _joined(ranges: Sequence[MemoryRange]) -> Iterator[MemoryRange]:
    """Neighbours as one: the kernel lists hot-added memory piece by piece."""
    current: MemoryRange | None = None
    for span in sorted(ranges, key=lambda span: span.start):
        if current is not None and span.start <= current.last + 1:
            current = MemoryRange(start=current.start, last=max(current.last, span.last))
        else:
            if current is not None:
                yield current
            current = span
    if current is not None:
        yield current
