# SPDX-License-Identifier: GPL-2.0-or-later
"""From a flattened stream back to the dump that it carries, as far as it came."""

from __future__ import annotations

from kdumpd.dumpfile.diskdump import SIGNATURE, STATUS_OFFSET, Status
from kdumpd.dumpfile.flattened import HEADER_SIZE, Read, check_header, stream_records
from kdumpd.dumpfile.sink import Sink
from kdumpd.vmcore.elf_headers import FLAGS_OFFSET, INCOMPLETE


def unflatten(read: Read, source: str, sink: Sink) -> tuple[int, bool]:
    """Writes every record of the stream `source` to its place. How many bytes came, and whether the last of them was
    the end; if not, the dump says of itself that it is incomplete.

    Raises DumpFormatError for what is no such stream, and TargetError.
    """
    header = b""
    while len(header) < HEADER_SIZE and (more := read(HEADER_SIZE - len(header))):
        header += more
    check_header(header, source)
    received, whole = HEADER_SIZE, True
    try:
        for at, pieces in stream_records(read, source):
            for data in pieces:
                sink.write_at(at, data)
                at += len(data)
                received += len(data)
    except EOFError:
        mark_incomplete(sink)
        whole = False
    sink.sync()
    return received, whole


def mark_incomplete(sink: Sink) -> None:
    """A header that came through a stream says from the start what is true at the end."""
    start = sink.read_at(0, len(SIGNATURE))
    if start == SIGNATURE:
        place, flag = STATUS_OFFSET, int(Status.INCOMPLETE)
    elif start.startswith(b"\x7fELF"):
        place, flag = FLAGS_OFFSET, INCOMPLETE
    else:
        return
    flags = int.from_bytes(sink.read_at(place, 4).ljust(4, b"\0"), "little") | flag
    sink.write_at(place, flags.to_bytes(4, "little"))
