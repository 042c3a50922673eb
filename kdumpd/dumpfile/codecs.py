# SPDX-License-Identifier: GPL-2.0-or-later
"""Packing and unpacking single pages. One object per thread: a compressor must not be shared."""

from __future__ import annotations

import importlib
import zlib
from collections.abc import Callable
from typing import Any, cast

from kdumpd.dumpfile.diskdump import BLOCK_SIZE, Codec
from kdumpd.errors import DumpFormatError, UnsupportedError

Buffer = bytes | bytearray | memoryview
Pack = Callable[[memoryview], bytes]
FAST = 1  # the level of zstd and of zlib when none is given


def packer(codec: Codec, level: int | None = None, page_size: int = BLOCK_SIZE) -> Pack:
    """A function from one page to its packed bytes, which may be longer than the page. Fast where no level is given.

    Raises UnsupportedError when a library for `codec` is missing, or it is none that packs.
    """
    if codec is Codec.ZSTD:
        import zstandard

        # The page size as a hint makes the tables small enough for the cache; a frame that does not state its
        # size is 2 bytes shorter, and every reader knows the size of a page.
        parameters = zstandard.ZstdCompressionParameters.from_level(
            FAST if level is None else level, source_size=page_size, write_content_size=0
        )
        compress: Pack = zstandard.ZstdCompressor(compression_params=parameters).compress
        return compress
    if codec is Codec.ZLIB:
        return lambda page: zlib.compress(page, FAST if level is None else level)
    if codec is Codec.LZO:
        lzo = _library("lzo")
        # Level 1 is lzo1x_1; without the header of python-lzo, which no reader of dumps knows.
        return lambda page: cast(bytes, lzo.compress(bytes(page), 1, False))
    if codec is Codec.SNAPPY:
        snappy = _library("snappy")
        return lambda page: bytes(snappy.compress(bytes(page)))
    raise UnsupportedError(f"'{codec.name.lower()}' packs nothing")


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UnsupportedError(
            f"{name} needs Python's module '{name}', which is not installed",
            hint=f"Debian: apt install python3-{name}; or use -z (zstd) or -c (zlib)",
        ) from error


class Unpacker:
    """Turns the stored bytes of a page into the page, of `page_size` bytes."""

    def __init__(self, page_size: int = BLOCK_SIZE) -> None:
        self._size = page_size
        self._zstd: Callable[..., bytes] | None = None

    def page(self, data: bytes, flags: int, source: str) -> bytes:
        """Raises DumpFormatError naming `source` when `data` is not one page packed as `flags` say, UnsupportedError
        when the library for that codec is missing."""
        try:
            if flags == Codec.RAW:
                page = data
            elif flags == Codec.ZLIB:
                page = zlib.decompressobj().decompress(data, self._size + 1)
            elif flags == Codec.ZSTD:
                page = self._unzstd(data)
            elif flags == Codec.LZO:
                page = _unlzo(data, self._size)
            elif flags == Codec.SNAPPY:
                page = _unsnappy(data, self._size)
            else:
                raise DumpFormatError(f"{source} is packed with codec {flags:#x}, which this version cannot read")
        except (zlib.error, RuntimeError, ValueError) as error:
            raise DumpFormatError(f"{source} cannot be unpacked: {error}") from error
        if len(page) != self._size:
            raise DumpFormatError(f"{source} unpacks to {len(page)} bytes, not to a page")
        return page

    def _unzstd(self, data: bytes) -> bytes:
        import zstandard

        if self._zstd is None:
            self._zstd = zstandard.ZstdDecompressor().decompress
        try:
            return self._zstd(data, max_output_size=self._size)
        except zstandard.ZstdError as error:
            raise ValueError(str(error)) from error


def _unlzo(data: bytes, page_size: int) -> bytes:
    lzo = _library("lzo")
    try:
        return cast(bytes, lzo.decompress(data, False, page_size))
    except lzo.error as error:
        raise ValueError(str(error)) from error


def _unsnappy(data: bytes, page_size: int) -> bytes:
    # A block begins with the length that it claims, 7 bits a byte; the library would take memory for any.
    claimed = 0
    for place, byte in enumerate(data[:3]):
        claimed |= (byte & 0x7F) << 7 * place
        if byte < 0x80:
            break
    else:
        claimed = page_size + 1  # it is longer than any page, or cut
    if claimed > page_size:
        raise ValueError("it claims to be larger than a page")
    snappy = _library("snappy")
    try:
        return bytes(snappy.uncompress(data))
    except Exception as error:  # python-snappy's errors have changed class and parent between its versions
        raise ValueError(str(error)) from error
