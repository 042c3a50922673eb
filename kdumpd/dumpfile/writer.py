# SPDX-License-Identifier: GPL-2.0-or-later
"""Writes a kdump-compressed dump so that it can be opened at any moment.

The header says INCOMPLETE until `finish`. Descriptors follow their data: a page whose descriptor is still zero is,
to crash and libkdumpfile, a page that was lost, and everything before it can be read.
"""

from __future__ import annotations

import dataclasses
import hashlib

import numpy as np
import numpy.typing as npt

from kdumpd.dumpfile.diskdump import (
    BLOCK_SIZE,
    DESCRIPTOR,
    SUB_HEADER_SIZE,
    Codec,
    Header,
    Status,
    Utsname,
    layout,
)
from kdumpd.dumpfile.manifest import Region
from kdumpd.dumpfile.sink import Sink

# Descriptors are sent in pieces of this many bytes, not with each batch: a small write to a slow target costs as
# much as a large one.
_DESCRIPTOR_BATCH = 64 << 10
_READ_BACK = 1 << 20
_DESCRIPTOR_DTYPE = np.dtype([("offset", "<i8"), ("size", "<u4"), ("flags", "<u4"), ("page_flags", "<u8")])
assert _DESCRIPTOR_DTYPE.itemsize == DESCRIPTOR.size


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """What the headers say of the dead kernel."""

    utsname: Utsname
    time_sec: int
    nr_cpus: int
    phys_base: int
    notes: bytes
    vmcoreinfo_at: int
    vmcoreinfo_size: int


@dataclasses.dataclass(frozen=True, slots=True)
class PackedPages:
    """A batch of pages in pfn order. `sizes` of 0 are zero pages, which have no bytes in `data`."""

    data: bytes
    sizes: npt.NDArray[np.uint32]
    flags: npt.NDArray[np.uint32]


class DiskdumpWriter:
    """One dump, from the first header to the last. Pages come in pfn order and are those of the `kept` bitmap."""

    def __init__(
        self,
        sink: Sink,
        origin: Origin,
        *,
        codec: Codec,
        level: int,
        max_mapnr: int,
        present: npt.NDArray[np.uint8],
        kept: npt.NDArray[np.uint8],
        kept_count: int,
    ) -> None:
        """Writes headers and bitmaps. The bitmaps hold a bit per pfn below `max_mapnr`."""
        self._sink = sink
        sub_blocks, bitmap_blocks = layout(max_mapnr=max_mapnr, note_size=len(origin.notes))
        note_offset = BLOCK_SIZE + SUB_HEADER_SIZE
        self._header = Header(
            utsname=origin.utsname,
            time_sec=origin.time_sec,
            status=int(codec) | Status.INCOMPLETE,
            max_mapnr=max_mapnr,
            nr_cpus=max(1, origin.nr_cpus),
            phys_base=origin.phys_base,
            dump_level=level,
            note_offset=note_offset,
            note_size=len(origin.notes),
            vmcoreinfo_offset=note_offset + origin.vmcoreinfo_at if origin.vmcoreinfo_size else 0,
            vmcoreinfo_size=origin.vmcoreinfo_size,
            sub_header_blocks=sub_blocks,
            bitmap_blocks=bitmap_blocks,
        )
        self._kept_count = kept_count
        self._written = 0
        self._data_start = self._header.descriptor_offset + kept_count * DESCRIPTOR.size
        self._end = self._data_start
        self._digest = hashlib.sha256()
        self._pending: list[bytes] = []
        self._pending_bytes = 0
        self._descriptors_at = self._header.descriptor_offset

        # The descriptors come last but must fit: with them a dump that ran out of room can still be read.
        sink.reserve(self._data_start)
        self._write_header()
        sink.write_at(note_offset, origin.notes)
        sink.write_at(self._header.present_offset, _padded(present, self._header.bitmap_bytes))
        sink.write_at(self._header.dumped_offset, _padded(kept, self._header.bitmap_bytes))
        # The page that every zero page's descriptor points at.
        self._zero_at = self._end
        self._append(bytes(BLOCK_SIZE))

    @property
    def size(self) -> int:
        """Bytes of the file so far, holes for descriptors to come included."""
        return self._end

    def _write_header(self) -> None:
        main, sub = self._header.pack()
        self._sink.write_at(0, main.ljust(BLOCK_SIZE, b"\0"))
        self._sink.write_at(BLOCK_SIZE, sub)

    def _append(self, data: bytes) -> None:
        self._sink.write_at(self._end, data)
        self._digest.update(data)
        self._end += len(data)

    def write(self, pages: PackedPages) -> None:
        """The next pages in pfn order."""
        table = np.zeros(len(pages.sizes), dtype=_DESCRIPTOR_DTYPE)
        ends = np.cumsum(pages.sizes, dtype=np.int64) + self._end
        is_zero = pages.sizes == 0
        table["offset"] = np.where(is_zero, self._zero_at, ends - pages.sizes)
        table["size"] = np.where(is_zero, BLOCK_SIZE, pages.sizes)
        table["flags"] = pages.flags
        if pages.data:
            self._append(pages.data)
        self._written += len(table)
        self._pending.append(table.tobytes())
        self._pending_bytes += table.nbytes
        if self._pending_bytes >= _DESCRIPTOR_BATCH:
            self.flush_descriptors()

    def flush_descriptors(self) -> None:
        """Sends the descriptors of all pages written so far."""
        if self._pending:
            block = b"".join(self._pending)
            self._sink.write_at(self._descriptors_at, block)
            self._descriptors_at += len(block)
            self._pending.clear()
            self._pending_bytes = 0

    def finish(self) -> tuple[Region, Region]:
        """Declares the dump complete, once all of it is on stable storage.

        Returns the checksums of the file's two regions: all up to the descriptors, read back from the target because
        they are not written in order, and the page data.
        """
        assert self._written == self._kept_count, f"{self._written} pages written of {self._kept_count}"
        self.flush_descriptors()
        # First everything, then the word that it is all there.
        self._sink.sync()
        self._header = dataclasses.replace(self._header, status=self._header.status & ~int(Status.INCOMPLETE))
        self._write_header()
        self._sink.sync()
        head = hashlib.sha256()
        at = 0
        while at < self._data_start:
            chunk = self._sink.read_at(at, min(_READ_BACK, self._data_start - at))
            if not chunk:
                break
            head.update(chunk)
            at += len(chunk)
        return (
            Region(offset=0, size_bytes=at, sha256=head.hexdigest()),
            Region(offset=self._data_start, size_bytes=self._end - self._data_start, sha256=self._digest.hexdigest()),
        )


def _padded(bits: npt.NDArray[np.uint8], size: int) -> bytes:
    return bits.tobytes().ljust(size, b"\0")
