# SPDX-License-Identifier: GPL-2.0-or-later
"""Writes a kdump-compressed dump so that it can be opened at any moment.

The header says INCOMPLETE until `finish`. Pages may come in any order, so that the important ones can come first.
A descriptor is written after its data reached stable storage: a page whose descriptor is still zero is, to crash
and libkdumpfile, a page that was lost, and all others can be read.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import threading
import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from kdumpd.dumpfile.codecs import Buffer
from kdumpd.dumpfile.diskdump import (
    BLOCK_SIZE,
    DESCRIPTOR,
    DESCRIPTORS,
    SUB_HEADER_SIZE,
    Codec,
    Header,
    Status,
    Utsname,
    layout,
)
from kdumpd.dumpfile.manifest import Region
from kdumpd.dumpfile.packing import PackedPages
from kdumpd.dumpfile.ranks import Ranks
from kdumpd.dumpfile.sink import Sink
from kdumpd.errors import DumpFormatError, KdumpError, NoSpaceError
from kdumpd.vmcore.arrays import NDArray, ints

# After so many bytes of page data, or so many descriptors, the data is made durable and the descriptors follow. What
# a power cut costs is bounded by both; the second bounds memory, too.
_CHECKPOINT_BYTES = 256 << 20
_CHECKPOINT_PAGES = 32 << 10
# A stream that is cut keeps what came before: there descriptors follow their data without waiting, after so many bytes.
_STREAM_BYTES = 1 << 20
# Descriptors that lie nearer to each other than this are written in one piece, with what is between them.
_NEAR = 512
_PIECE = 1 << 20  # bytes of bitmap, and with the next a like amount of descriptors, copied at once
_PIECE_ROWS = 1 << 15
_Table = NDArray[np.void]


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


class _Fresh(NamedTuple):
    """Pages that were written and have no descriptors yet: of `sizes` bytes each, one behind the other from `start`."""

    pfns: NDArray[np.int64]
    sizes: NDArray[np.uint32]
    flags: NDArray[np.uint32]
    start: int


class _Sync:
    """A sync that runs in a thread of its own."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="sync", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._sink.sync()
        except BaseException as error:  # raised again where it is waited for
            self._error = error

    @property
    def done(self) -> bool:
        return not self._thread.is_alive()

    def result(self) -> None:
        """Waits for its end. Raises what it raised."""
        self._thread.join()
        if self._error is not None:
            raise self._error


class DiskdumpWriter:
    """One dump, from the first header to the last. Its pages are those of the `kept` bitmap, each written once.

    `count` pages are to be written; `written` have been.
    """

    def __init__(
        self,
        sink: Sink,
        origin: Origin,
        *,
        codec: Codec,
        level: int,
        block_size: int = BLOCK_SIZE,
        max_mapnr: int,
        present: NDArray[np.uint8],
        kept: NDArray[np.uint8],
        checksums: bool = True,
        part: tuple[int, int] | None = None,
    ) -> None:
        """Writes headers and bitmaps. The bitmaps hold a bit per pfn below `max_mapnr`; they are not kept.

        Pages have `block_size` bytes. With a `part` it is one of several dumps, and holds of the kept pages only those
        in [start, end).
        """
        self._sink = sink
        sub_blocks, bitmap_blocks = layout(max_mapnr=max_mapnr, note_size=len(origin.notes), block_size=block_size)
        note_offset = block_size + SUB_HEADER_SIZE
        self._header = Header(
            utsname=origin.utsname,
            time_sec=origin.time_sec,
            # A stream cannot take the word back: there it is the stream's own end that says complete.
            status=int(codec) | (Status.INCOMPLETE if sink.rewritable else 0),
            max_mapnr=max_mapnr,
            nr_cpus=max(1, origin.nr_cpus),
            phys_base=origin.phys_base,
            dump_level=level,
            note_offset=note_offset,
            block_size=block_size,
            note_size=len(origin.notes),
            vmcoreinfo_offset=note_offset + origin.vmcoreinfo_at if origin.vmcoreinfo_size else 0,
            vmcoreinfo_size=origin.vmcoreinfo_size,
            sub_header_blocks=sub_blocks,
            bitmap_blocks=bitmap_blocks,
            split=part is not None,
            start_pfn=part[0] if part else 0,
            end_pfn=part[1] if part else 0,
        )
        self.written = 0
        self.write_seconds = 0.0
        self._ranks = Ranks.of_array(kept)
        self._first_rank, end_rank = 0, self._ranks.count
        if part is not None:
            self._first_rank, end_rank = ints(self._ranks.find(np.array(part, dtype=np.int64))[0])
        self.count = end_rank - self._first_rank
        self._data_start = self._header.descriptor_offset + self.count * DESCRIPTOR.size
        self._end = self._data_start
        self._notes = origin.notes
        self._digest = hashlib.sha256() if checksums else None
        self._bitmaps_digest = hashlib.sha256() if checksums else None
        self._fresh: list[_Fresh] = []
        self._fresh_pages = 0
        self._fresh_from = self._described_to = self._end
        self._syncing: _Sync | None = None
        self._synced: list[_Fresh] = []

        # The descriptors come last but must fit: with them a dump that ran out of room can still be read.
        sink.reserve(self._data_start)
        self._write_header()
        sink.write_at(note_offset, origin.notes)
        self._write_bitmap(self._header.present_offset, present)
        self._write_bitmap(self._header.dumped_offset, kept)
        # What was written need not be held a second time; a stream can't be asked for it.
        if sink.rewritable:
            self._ranks.read_from(self._read_dumped)
        else:
            self._ranks = Ranks.of_array(kept.copy())
        # The page that every zero page's descriptor points at.
        self._zero_at = self._end
        self._append([bytes(block_size)], block_size)

    @property
    def size(self) -> int:
        """Bytes of the file so far, holes for descriptors to come included."""
        return self._end

    @property
    def data_size(self) -> int:
        """Bytes of page data so far; writing them, and waiting for them to be safe, took `write_seconds`."""
        return self._end - self._data_start

    def _write_header(self) -> None:
        main, sub = self._header.pack()
        self._sink.write_at(0, main.ljust(self._header.block_size, b"\0"))
        self._sink.write_at(self._header.block_size, sub)

    def _write_bitmap(self, offset: int, bits: NDArray[np.uint8]) -> None:
        for at in range(0, self._header.bitmap_bytes, _PIECE):
            size = min(_PIECE, self._header.bitmap_bytes - at)
            piece = bits[at : at + size].tobytes().ljust(size, b"\0")
            # The room that was reserved reads as zeros.
            if not self._sink.rewritable or piece.count(0) < size:
                self._sink.write_at(offset + at, piece)
            if self._bitmaps_digest is not None:
                self._bitmaps_digest.update(piece)

    def _read_dumped(self, at: int, size: int) -> NDArray[np.uint8]:
        return np.frombuffer(self._sink.read_at(self._header.dumped_offset + at, size), dtype=np.uint8)

    def _append(self, parts: Sequence[Buffer], size: int) -> None:
        began = time.monotonic()
        self._sink.write_parts(self._end, parts)
        self.write_seconds += time.monotonic() - began
        if self._digest is not None:
            for part in parts:
                self._digest.update(part)
        self._end += size

    def write(self, pages: PackedPages, pfns: NDArray[np.int64]) -> None:
        """Adds the pages of ascending `pfns`, none of which was written before.

        Where the room does not suffice for all of them, those that fit are saved before NoSpaceError is raised.
        """
        try:
            self._write(pages, pfns)
        except NoSpaceError:
            if not self._sink.rewritable or len(pfns) == 1:
                raise
            middle = len(pfns) // 2
            for first, last in ((0, middle), (middle, len(pfns))):
                self.write(pages.some(first, last), pfns[first:last])

    def _write(self, pages: PackedPages, pfns: NDArray[np.int64]) -> None:
        fresh = _Fresh(pfns, pages.sizes.copy(), pages.flags.copy(), self._end)
        if pages.parts:
            self._append(pages.parts, int(pages.sizes.sum(dtype=np.int64)))
        self.written += len(pfns)
        self._fresh.append(fresh)
        self._fresh_pages += len(pfns)
        if not self._sink.rewritable and self._end - self._described_to >= _STREAM_BYTES:
            self._describe_fresh()
        if self._syncing is not None and self._syncing.done:
            self._await_sync()
        if self._fresh_pages >= _CHECKPOINT_PAGES or self._end - self._fresh_from >= _CHECKPOINT_BYTES:
            self._await_sync()
            self._begin_sync()

    def _begin_sync(self) -> None:
        """Makes the data of all fresh descriptors durable while the work goes on."""
        self._synced, self._fresh = self._fresh, []
        self._fresh_pages = 0
        self._fresh_from = self._end
        self._syncing = _Sync(self._sink)

    def _await_sync(self) -> None:
        """Writes the descriptors whose data is durable."""
        if self._syncing is None:
            return
        syncing, self._syncing = self._syncing, None
        began = time.monotonic()
        syncing.result()
        self.write_seconds += time.monotonic() - began
        parts, self._synced = self._synced, []
        self._describe(parts)

    def _describe_fresh(self) -> None:
        """Sends the descriptors of all data that was sent before them."""
        parts, self._fresh = self._fresh, []
        self._described_to = self._end
        self._describe(parts)

    def _describe(self, parts: Sequence[_Fresh]) -> None:
        """Writes the descriptors of pages that were written one behind the other."""
        if not parts:
            return
        pfns = np.concatenate([part.pfns for part in parts])
        sizes = np.concatenate([part.sizes for part in parts])
        flags = np.concatenate([part.flags for part in parts])
        offsets = np.cumsum(sizes, dtype=np.int64) - sizes + parts[0].start
        if (pfns[1:] < pfns[:-1]).any():
            order = np.argsort(pfns, kind="stable")
            pfns, sizes, flags, offsets = pfns[order], sizes[order], flags[order], offsets[order]
        table = np.zeros(len(pfns), dtype=DESCRIPTORS)
        is_zero = sizes == 0
        table["offset"] = np.where(is_zero, self._zero_at, offsets)
        table["size"] = np.where(is_zero, self._header.block_size, sizes)
        table["flags"] = flags
        self._patch(self._ranks.of(pfns) - self._first_rank, table)

    def _patch(self, ranks: NDArray[np.int64], table: _Table) -> None:
        gaps = np.diff(ranks)
        near = _NEAR if self._sink.rewritable else 1
        cuts = np.flatnonzero((gaps > near) | (np.arange(1, len(ranks)) % _PIECE_ROWS == 0)) + 1
        for here, rows in zip(np.split(ranks, cuts), np.split(table, cuts), strict=True):
            first, count = int(here[0]), int(here[-1] - here[0]) + 1
            at = self._header.descriptor_offset + first * DESCRIPTOR.size
            if count > len(here):
                found = self._sink.read_at(at, count * DESCRIPTOR.size).ljust(count * DESCRIPTOR.size, b"\0")
                span = np.frombuffer(bytearray(found), dtype=DESCRIPTORS)
                span[here - first] = rows
                rows = span
            self._sink.write_at(at, rows.tobytes())

    def checkpoint(self) -> None:
        """Returns when all pages written so far can be read from the file, whatever happens next."""
        if not self._sink.rewritable:
            self._describe_fresh()
        self._await_sync()
        self._begin_sync()
        self._await_sync()

    def close(self) -> None:
        """Waits for the sync that is under way; how it ended does not matter any more."""
        with contextlib.suppress(KdumpError):
            self._await_sync()

    def finish(self, *, complete: bool = True) -> tuple[Region, ...]:
        """Declares the dump complete, once all of it is on stable storage; or leaves it at INCOMPLETE, if these pages
        are not all that were wanted.

        Returns the checksums of headers with notes, bitmaps, descriptors and page data. They were taken while that was
        written; only the descriptors, which are not written in their order, are read back from the target's cache.
        """
        if self.written != self.count:
            raise DumpFormatError(f"{self.written} pages were written of {self.count}")
        self.checkpoint()
        # First everything, then the word that it is all there.
        self._sink.sync()
        if self._sink.rewritable and complete:
            self._header = dataclasses.replace(self._header, status=self._header.status & ~int(Status.INCOMPLETE))
            self._write_header()
            self._sink.sync()
        return self._regions() if self._digest is not None and self._sink.rewritable else ()

    def _regions(self) -> tuple[Region, ...]:
        header = self._header
        main, sub = header.pack()
        head = main.ljust(header.block_size, b"\0") + sub + self._notes
        table = hashlib.sha256()
        for at in range(header.descriptor_offset, self._data_start, _PIECE):
            table.update(self._sink.read_at(at, min(_PIECE, self._data_start - at)))
        digests = (
            (0, hashlib.sha256(head.ljust(header.present_offset, b"\0"))),
            (header.present_offset, self._bitmaps_digest),
            (header.descriptor_offset, table),
            (self._data_start, self._digest),
        )
        ends = (*(offset for offset, _ in digests[1:]), self._end)
        return tuple(
            Region(offset=offset, size_bytes=end - offset, sha256=digest.hexdigest())
            for (offset, digest), end in zip(digests, ends, strict=True)
            if digest is not None and end > offset
        )
