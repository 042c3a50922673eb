# SPDX-License-Identifier: GPL-2.0-or-later
"""What a dump is to be like."""

from __future__ import annotations

import dataclasses

from kdumpd.config.model import Compression
from kdumpd.dumpfile.diskdump import Codec

CODECS = {
    Compression.NONE: Codec.RAW,
    Compression.ZLIB: Codec.ZLIB,
    Compression.LZO: Codec.LZO,
    Compression.SNAPPY: Codec.SNAPPY,
    Compression.ZSTD: Codec.ZSTD,
}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DumpOptions:
    """`levels` is a ladder: the first dump level is wanted, the next ones are for when the target is too small.

    `compression_level` None lets the collector choose. `checksums` takes the sha256 of each region while writing;
    `verify` reads the dump back before it gets its name.
    """

    levels: tuple[int, ...] = (0,)
    codec: Codec = Codec.RAW
    compression_level: int | None = None
    threads: int = 1
    checksums: bool = True
    verify: bool = True
