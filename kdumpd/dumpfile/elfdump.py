# SPDX-License-Identifier: GPL-2.0-or-later
"""Writes an ELF core file: what /proc/vmcore would be, without the pages that are left out.

    ELF header | program headers | section header 0 | notes | pages

Pages of zeros are holes of the file. Until `finish` e_flags says incomplete, as makedumpfile does it; the format has
no way to tell a page that was lost from one of zeros.
"""

from __future__ import annotations

import itertools
import struct
import time
from collections.abc import Sequence

import numpy as np

from kdumpd.dumpfile.elflayout import Piece, Runs, pieces
from kdumpd.dumpfile.manifest import Region
from kdumpd.dumpfile.packing import PackedPages
from kdumpd.dumpfile.sink import Sink
from kdumpd.errors import DumpFormatError, UnsupportedError
from kdumpd.vmcore.arrays import NDArray, count_bits, ints
from kdumpd.vmcore.elf_headers import INCOMPLETE, MACHINES, PN_XNUM
from kdumpd.vmcore.memory import PAGE_SIZE, Segment

_EHDR = struct.Struct("<16sHHIQQQIHHHHHH")
_PHDR = struct.Struct("<IIQQQQQQ")
_SHDR = struct.Struct("<IIQQQQIIQQ")
_IDENT = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
_ET_CORE = 4
_PT_LOAD, _PT_NOTE = 1, 4
_RWX = 7
_ALIGN = 16
_PIECE = 1 << 20  # bytes of program headers sent in one go


class ElfWriter:
    """One core file. Its pages are those of the `kept` bitmap, in any order, each written once and not packed.

    `filled` counts pages that were left out and lie in holes too short for a program header: they read as zeros.
    """

    def __init__(
        self,
        sink: Sink,
        *,
        machine: str,
        segments: Sequence[Segment],
        notes: bytes,
        kept: NDArray[np.uint8],
        page_size: int = PAGE_SIZE,
    ) -> None:
        """Writes everything but the pages. Raises UnsupportedError for a machine without an ELF number."""
        self._sink = sink
        self._page_size = page_size
        numbers = {name: number for number, name in MACHINES.items()}
        if machine not in numbers:
            raise UnsupportedError(f"no ELF file can be written for machine '{machine}'")
        self._machine = numbers[machine]
        self._runs = Runs.of(kept)
        self._before = self._runs.first_page()
        self.count = count_bits(kept)
        # Pages that were left out, and that readers take for zeros.
        self.filled = self._runs.pages - self.count
        self.written = 0
        self.write_seconds = 0.0
        self.data_size = 0
        # Counted first, written in a second pass: there may be very many.
        self._headers = 1 + sum(1 for _ in pieces(segments, self._runs, page_size))
        self._sections_at = _EHDR.size + self._headers * _PHDR.size
        notes_at = self._sections_at + _SHDR.size
        # makedumpfile 1.7.8 maps the wrong pages, and dies, where segments with holes lie at page boundaries of the
        # file; elsewhere it reads.
        self._data_at = -(-(notes_at + len(notes)) // _ALIGN) * _ALIGN
        if self._data_at % PAGE_SIZE == 0:  # the smallest page that any machine has
            self._data_at += _ALIGN
        self._end = self._data_at + self._runs.pages * page_size
        self._reached = self._data_at

        sink.reserve(self._data_at)
        self._write_header(INCOMPLETE if sink.rewritable else 0)
        self._write_program_headers(segments, notes_at, len(notes))
        extended = self._headers if self._headers >= PN_XNUM else 0
        sink.write_at(self._sections_at, _SHDR.pack(0, 0, 0, 0, 0, 0, 0, extended, 0, 0))
        sink.write_at(notes_at, notes)

    @property
    def size(self) -> int:
        """Bytes of the file as it will be, holes included."""
        return self._end

    def _write_header(self, flags: int) -> None:
        # elf(5): a number that does not fit is in sh_info of section 0, which exists only for that.
        extended = self._headers >= PN_XNUM
        header = _EHDR.pack(
            _IDENT, _ET_CORE, self._machine, 1, 0, _EHDR.size, self._sections_at if extended else 0, flags,
            _EHDR.size, _PHDR.size, min(self._headers, PN_XNUM), _SHDR.size if extended else 0, int(extended), 0,
        )  # fmt: skip
        self._sink.write_at(0, header)

    def _write_program_headers(self, segments: Sequence[Segment], notes_at: int, notes_size: int) -> None:
        at = _EHDR.size
        block = bytearray(_PHDR.pack(_PT_NOTE, 0, notes_at, 0, 0, notes_size, notes_size, 4))
        for piece in pieces(segments, self._runs, self._page_size):
            block += self._program_header(piece)
            if len(block) >= _PIECE:
                self._sink.write_at(at, block)
                at += len(block)
                block = bytearray()
        if block:
            self._sink.write_at(at, block)

    def _program_header(self, piece: Piece) -> bytes:
        offset = self._data_at + piece.page * self._page_size + piece.inside
        return _PHDR.pack(_PT_LOAD, _RWX, offset, piece.vaddr, piece.paddr, piece.filesz, piece.memsz, 0)

    def write(self, pages: PackedPages, pfns: NDArray[np.int64]) -> None:
        """Adds the pages of ascending `pfns`, which must not be packed."""
        filled = np.flatnonzero(pages.sizes)
        if pages.flags[filled].any():
            raise DumpFormatError("an ELF file does not hold packed pages")
        offsets = self._offsets(pfns[filled])
        began = time.monotonic()
        cuts = [0, *ints(np.flatnonzero(np.diff(offsets) != self._page_size) + 1), len(offsets)]
        for first, last in itertools.pairwise(cuts):
            if first < last:
                at = int(offsets[first])
                self._sink.write_parts(at, pages.parts[first:last])
                self._reached = max(self._reached, at + (last - first) * self._page_size)
        self.write_seconds += time.monotonic() - began
        self.data_size += len(filled) * self._page_size
        self.written += len(pfns)

    def _offsets(self, pfns: NDArray[np.int64]) -> NDArray[np.int64]:
        runs = np.searchsorted(self._runs.starts, pfns, side="right") - 1
        outside = (runs < 0) | (pfns >= self._runs.ends[runs])
        if outside.any():
            raise DumpFormatError(f"pfn {int(pfns[outside][0]):#x} is not among the pages to write")
        found: NDArray[np.int64] = (
            self._data_at + (self._before[runs] + pfns - self._runs.starts[runs]) * self._page_size
        )
        return found

    def checkpoint(self) -> None:
        """Returns when all pages written so far are on stable storage."""
        self._sink.sync()

    def close(self) -> None:
        """Nothing is left to end."""

    def finish(self, *, complete: bool = True) -> tuple[Region, ...]:
        """Declares the file complete, once all of it is on stable storage, unless pages that were wanted are not in it.
        It has no checksums: pages lie in it in another order than that in which they are written."""
        if self.written != self.count:
            raise DumpFormatError(f"{self.written} pages were written of {self.count}")
        if self._reached < self._end:
            self._sink.write_at(self._end - 1, b"\0")
        self._sink.sync()
        if self._sink.rewritable and complete:
            self._write_header(0)
            self._sink.sync()
        return ()
