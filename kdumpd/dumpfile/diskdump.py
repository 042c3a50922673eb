# SPDX-License-Identifier: GPL-2.0-or-later
"""The kdump-compressed format, version 6: its headers and where its regions lie (docs/FORMATS.md).

    header | sub header, notes | bitmap of pages present | bitmap of pages dumped | descriptors | page data

in blocks of the dead kernel's page size, for 64-bit little-endian machines. Pure layout: reading and writing are
elsewhere.
"""

from __future__ import annotations

import dataclasses
import enum
import struct
from collections.abc import Callable

import numpy as np

from kdumpd.errors import DumpFormatError

SIGNATURE = b"KDUMP   "
VERSION = 6
BLOCK_SIZE = 4096  # where pages have this size; else a block is as large as a page
_LARGEST_BLOCK = 1 << 16
STATUS_OFFSET = 424  # of the header's status, 4 bytes

# disk_dump_header: signature, version, six utsname strings, padding, time, status, geometry, nr_cpus.
_HEADER = struct.Struct("<8si65s65s65s65s65s65s6xqqIiiIIIIIIi")
_SUB_HEADER = struct.Struct("<QiiQQqQqQqQQQQ")
DESCRIPTOR = struct.Struct("<qIIQ")
DESCRIPTORS = np.dtype([("offset", "<i8"), ("size", "<u4"), ("flags", "<u4"), ("page_flags", "<u8")])  # of a table
HEADER_SIZE = _HEADER.size
SUB_HEADER_SIZE = _SUB_HEADER.size
_U32_MAX = 0xFFFFFFFF

assert (HEADER_SIZE, SUB_HEADER_SIZE, DESCRIPTOR.size, DESCRIPTORS.itemsize) == (464, 104, 24, 24)


class Codec(enum.IntEnum):
    """How a page is stored: the flags of its descriptor, and a bit of the header's status."""

    RAW = 0
    ZLIB = 1
    LZO = 2
    SNAPPY = 4
    ZSTD = 0x20


class Status(enum.IntFlag):
    """Bits of the header's status beside the codec's."""

    INCOMPLETE = 0x8
    EXCLUDED_VMEMMAP = 0x10


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Utsname:
    """struct new_utsname of the dead kernel."""

    sysname: str = "Linux"
    nodename: str = ""
    release: str = ""
    version: str = ""
    machine: str = ""
    domainname: str = ""

    @classmethod
    def from_bytes(cls, raw: bytes) -> Utsname:
        """Six fields of 65 bytes, NUL-terminated; shorter input leaves the last ones empty."""
        texts = [raw[at : at + 65].split(b"\0", 1)[0].decode("utf-8", "replace") for at in range(0, 390, 65)]
        return cls(**dict(zip((field.name for field in dataclasses.fields(cls)), texts, strict=True)))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """Both headers. `max_mapnr` is one above the highest pfn; offsets are bytes from the start of the file.

    `block_size` is that of a page of the dead kernel. A dump that is `split` has descriptors for the pages in
    [start_pfn, end_pfn) only, in spite of its whole bitmaps.
    """

    utsname: Utsname
    time_sec: int
    status: int
    max_mapnr: int
    nr_cpus: int
    phys_base: int
    dump_level: int
    note_size: int
    vmcoreinfo_offset: int
    vmcoreinfo_size: int
    sub_header_blocks: int
    bitmap_blocks: int
    note_offset: int
    block_size: int = BLOCK_SIZE
    split: bool = False
    start_pfn: int = 0
    end_pfn: int = 0

    @property
    def bitmap_bytes(self) -> int:
        """Size of one of the two bitmaps; each fills whole blocks."""
        return self.bitmap_blocks // 2 * self.block_size

    @property
    def present_offset(self) -> int:
        """First bitmap: pages that the machine has."""
        return (1 + self.sub_header_blocks) * self.block_size

    @property
    def dumped_offset(self) -> int:
        """Second bitmap: pages that have a descriptor."""
        return self.present_offset + self.bitmap_bytes

    @property
    def descriptor_offset(self) -> int:
        """The table of descriptors, one per page dumped, in pfn order."""
        return (1 + self.sub_header_blocks + self.bitmap_blocks) * self.block_size

    def pack(self) -> tuple[bytes, bytes]:
        """The main header and the sub header, for file offsets 0 and `block_size`."""
        names = [value.encode()[:64] for value in dataclasses.astuple(self.utsname)]
        main = _HEADER.pack(
            SIGNATURE, VERSION, *names, self.time_sec, 0, self.status, self.block_size, self.sub_header_blocks,
            self.bitmap_blocks, min(self.max_mapnr, _U32_MAX), 0, 0, 0, 0, self.nr_cpus,
        )  # fmt: skip
        phys_base = self.phys_base & (1 << 64) - 1
        sub = _SUB_HEADER.pack(
            phys_base, self.dump_level, self.split, min(self.start_pfn, _U32_MAX), min(self.end_pfn, _U32_MAX),
            self.vmcoreinfo_offset, self.vmcoreinfo_size, self.note_offset, self.note_size, 0, 0,
            self.start_pfn, self.end_pfn, self.max_mapnr,
        )  # fmt: skip
        return main, sub


def layout(*, max_mapnr: int, note_size: int, block_size: int = BLOCK_SIZE) -> tuple[int, int]:
    """Blocks of the sub header with its notes, and of both bitmaps together."""
    sub_header_blocks = -(-(SUB_HEADER_SIZE + note_size) // block_size)
    bitmap_blocks = 2 * ((max_mapnr + 8 * block_size - 1) // (8 * block_size))
    return sub_header_blocks, bitmap_blocks


def read_headers(read_at: Callable[[int, int], bytes], source: str) -> Header:
    """The headers of the dump of which `read_at(offset, size)` gives up to so many bytes.

    Raises DumpFormatError naming `source` when they are not of this format or contradict themselves.
    """
    main = read_at(0, HEADER_SIZE)
    if len(main) < HEADER_SIZE or main[:8] != SIGNATURE:
        from kdumpd.dumpfile.stored import is_encrypted

        if is_encrypted(main):
            raise DumpFormatError(f"{source} is encrypted", hint=f"kdumpctl decrypt {source} comes first")
        raise DumpFormatError(f"{source} is not a kdump-compressed dump")
    _, version, *rest = _HEADER.unpack_from(main)
    (time_sec, _, status, block_size, sub_blocks, bitmap_blocks, max_mapnr, _, _, _, _, nr_cpus) = rest[6:]
    if version < 1 or not BLOCK_SIZE <= block_size <= _LARGEST_BLOCK or block_size & block_size - 1:
        raise DumpFormatError(f"{source} has header version {version} and blocks of {block_size}, which are not read")
    sub = read_at(block_size, SUB_HEADER_SIZE)
    if len(sub) < SUB_HEADER_SIZE or sub_blocks < 1:
        raise DumpFormatError(f"{source} ends inside its headers")
    fields = _SUB_HEADER.unpack_from(sub)
    phys_base, level = fields[0], fields[1]
    # Each version added fields at the end of the sub header; what lies there in an older dump is something else.
    split, start_pfn, end_pfn = fields[2:5] if version >= 2 else (0, 0, 0)
    info_offset, info_size = fields[5:7] if version >= 3 else (0, 0)
    note_offset, note_size = fields[7:9] if version >= 4 else (0, 0)
    if version >= 6:
        start_pfn, end_pfn, max_mapnr = fields[11:14]
    _, needed = layout(max_mapnr=max_mapnr, note_size=0, block_size=block_size)
    if bitmap_blocks < needed:
        raise DumpFormatError(f"{source} claims {max_mapnr} pages but has bitmaps of {bitmap_blocks} blocks")
    return Header(
        utsname=Utsname.from_bytes(main[12:402]),
        time_sec=time_sec,
        status=status,
        max_mapnr=max_mapnr,
        nr_cpus=nr_cpus,
        phys_base=phys_base,
        dump_level=level,
        note_size=note_size,
        vmcoreinfo_offset=info_offset,
        vmcoreinfo_size=info_size,
        sub_header_blocks=sub_blocks,
        bitmap_blocks=bitmap_blocks,
        note_offset=note_offset,
        block_size=block_size,
        split=bool(split),
        start_pfn=start_pfn,
        end_pfn=end_pfn,
    )
