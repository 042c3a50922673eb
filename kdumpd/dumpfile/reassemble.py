# SPDX-License-Identifier: GPL-2.0-or-later
"""Joins the parts of a split dump: their page data one behind the other, and one table of descriptors over it."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np

from kdumpd.dumpfile.diskdump import DESCRIPTOR, Header, Status
from kdumpd.dumpfile.reader import DiskdumpReader
from kdumpd.dumpfile.sink import Sink
from kdumpd.errors import DumpFormatError

_COPY = 1 << 20
_OWN = frozenset({"time_sec", "status", "split", "start_pfn", "end_pfn"})
"""Fields of the headers in which parts differ."""


def check_parts(readers: Sequence[DiskdumpReader]) -> list[DiskdumpReader]:
    """The parts in the order of their pages. Raises DumpFormatError unless they are all parts of one dump."""
    for reader in readers:
        if not reader.header.split:
            raise DumpFormatError(f"{reader.path} is not a part of a split dump")
    ordered = sorted(readers, key=lambda each: (each.header.start_pfn, each.header.end_pfn))
    first = ordered[0]
    for reader in ordered[1:]:
        different = [
            field.name
            for field in dataclasses.fields(Header)
            if field.name not in _OWN and getattr(reader.header, field.name) != getattr(first.header, field.name)
        ]
        if different:
            raise DumpFormatError(f"{reader.path} and {first.path} are of different dumps: {', '.join(different)}")
        if reader.notes() != first.notes():
            raise DumpFormatError(f"{reader.path} and {first.path} are of different dumps: their notes differ")
        for at, size in first.pieces():
            if (reader.dumped(at, size) != first.dumped(at, size)).any():
                raise DumpFormatError(f"{reader.path} and {first.path} are of different dumps: their bitmaps differ")
    for left, right in itertools.pairwise(ordered):
        if left.end_rank != right.first_rank:
            kind = "are both in" if left.end_rank > right.first_rank else "are missing between"
            raise DumpFormatError(f"pages {kind} {left.path} and {right.path}; each part is needed once")
    if first.first_rank != 0 or ordered[-1].end_rank != first.whole_count:
        where = "first" if first.first_rank else "last"
        raise DumpFormatError(f"the {where} part is missing: the pages of all that are given are not those of the dump")
    return ordered


def join(parts: Sequence[DiskdumpReader], sink: Sink) -> list[str]:
    """Writes the whole dump; packed pages are copied as they are. Returns the names of parts that are incomplete, in
    which case the result says that it is incomplete, too."""
    first = parts[0]
    header = first.header
    codec = header.status & ~int(Status.INCOMPLETE)
    whole = dataclasses.replace(header, split=False, start_pfn=0, end_pfn=0, status=codec | Status.INCOMPLETE)
    data_at = header.descriptor_offset + first.whole_count * DESCRIPTOR.size
    sink.reserve(data_at)
    main, sub = whole.pack()
    sink.write_at(0, main.ljust(header.block_size, b"\0"))
    sink.write_at(header.block_size, sub)
    behind = header.block_size + len(sub)
    _copy(first, behind, header.descriptor_offset, sink, behind)
    for part in parts:
        begin = header.descriptor_offset + part.page_count * DESCRIPTOR.size
        for number, table in part.descriptors():
            moved = table.copy()
            moved["offset"] += np.where(table["offset"] > 0, data_at - begin, 0)
            at = header.descriptor_offset + (part.first_rank + number) * DESCRIPTOR.size
            sink.write_at(at, moved.tobytes())
        data_at += _copy(part, begin, part.size, sink, data_at)
    sink.sync()
    incomplete = [str(part.path) for part in parts if part.incomplete]
    if not incomplete:
        main, _ = dataclasses.replace(whole, status=codec).pack()
        sink.write_at(0, main.ljust(header.block_size, b"\0"))
        sink.sync()
    return incomplete


def _copy(part: DiskdumpReader, begin: int, end: int, sink: Sink, to: int) -> int:
    """Copies bytes [begin, end) of a file. Returns how many."""
    for at in range(begin, end, _COPY):
        data = part.bytes_at(at, min(_COPY, end - at))
        sink.write_at(to + at - begin, data)
    return max(0, end - begin)
