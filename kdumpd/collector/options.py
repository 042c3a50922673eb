# SPDX-License-Identifier: GPL-2.0-or-later
"""What a dump is to be like."""

from __future__ import annotations

import dataclasses
import os
from typing import Self

from kdumpd.config.model import Compression, DumpSettings
from kdumpd.dumpfile.codecs import packer
from kdumpd.dumpfile.diskdump import Codec
from kdumpd.errors import UnsupportedError

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
    `verify` reads the dump back before it gets its name. `elf` makes it an ELF core file, whose pages are not packed.
    What is to be kept free on the target is as in DumpSettings.
    """

    levels: tuple[int, ...] = (0,)
    codec: Codec = Codec.RAW
    compression_level: int | None = None
    threads: int = 1
    checksums: bool = True
    verify: bool = True
    elf: bool = False
    keep_free_bytes: int = 0
    keep_free_percent: int = 0

    @classmethod
    def of(cls, settings: DumpSettings) -> Self:
        """What `settings` ask for on this machine."""
        return cls(
            levels=settings.levels,
            codec=CODECS[settings.compression],
            compression_level=settings.compression_level,
            threads=settings.threads or len(os.sched_getaffinity(0)),
            checksums=settings.checksums,
            verify=settings.verify,
            elf=settings.elf,
            keep_free_bytes=settings.keep_free_bytes,
            keep_free_percent=settings.keep_free_percent,
        )


def with_usable_codec(settings: DumpSettings, notes: list[str]) -> DumpSettings:
    """`settings`, with zstd and a note where the library for their codec is missing: any dump beats none."""
    codec = CODECS[settings.compression]
    if not settings.external and codec in (Codec.LZO, Codec.SNAPPY):
        try:
            packer(codec)
        except UnsupportedError as error:
            notes.append(f"pages are packed with zstd: {error.sentence}")
            return dataclasses.replace(settings, compression=Compression.ZSTD)
    return settings
