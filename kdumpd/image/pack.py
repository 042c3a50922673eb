# SPDX-License-Identifier: GPL-2.0-or-later
"""Packing the archive in a way the kernel can unpack, and unpacking it again for the check.

The capture kernel lives in a few dozen MB, so the window of zstd is kept small: the kernel sets memory of that
size aside while it unpacks (lib/decompress_unzstd.c).
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Mapping
from typing import Any

from kdumpd.errors import BuildError

_ZSTD_LEVEL = 9  # of 2 MB: 0.1 MB more than level 19 makes of it, in a tenth of the time
# Of the 5 MB before a squashfs, which are unpacked and forgotten: 0.16 MB more than level 9, in a third of the time.
_SMALL_LEVEL = 4
# Two threads from here on, as many as the smallest machines have processors: a number that is fixed, since the bytes
# depend on whether there are threads.
_LARGE_BYTES = 8 << 20
# All of /usr with another tool's image around it, 48 MB: 16.9 MB in 3 s of processor time, where level 19 makes 15.1 MB
# in 25 s. A build may take 20 s.
_HUGE_BYTES = 40 << 20
_HUGE_LEVEL = 12
_WINDOW_LOG = 22  # 4 MiB
_GZIP_LEVEL = 6
_UNPACKED_LIMIT = 1 << 30


def load_zstandard() -> Any:
    """The module zstandard. Raises BuildError where it is missing: then a sentence is owed, not a traceback."""
    try:
        import zstandard
    except ImportError as error:
        raise BuildError(
            f"the Python module zstandard is missing: {error}", hint="install python3-zstandard"
        ) from error
    if zstandard.__file__ is None:  # an empty folder is a package too, for Python
        raise BuildError("the Python module zstandard is empty", hint="install python3-zstandard again")
    return zstandard


def choose(kernel_config: Mapping[str, str] | None) -> str:
    """ "zstd", "gzip" or "none": the best this kernel unpacks (CONFIG_RD_*); "none" if nobody can tell."""
    if kernel_config is None:
        return "none"
    if kernel_config.get("CONFIG_RD_ZSTD") == "y":
        return "zstd"
    return "gzip" if kernel_config.get("CONFIG_RD_GZIP") == "y" else "none"


def pack(archive: bytes, compression: str) -> bytes:
    """`archive` packed; equal bytes give equal bytes."""
    if compression == "zstd":
        zstandard = load_zstandard()
        parameters = zstandard.ZstdCompressionParameters.from_level(
            _level(len(archive)),
            source_size=len(archive),
            window_log=_WINDOW_LOG,
            write_checksum=True,
            write_content_size=True,
            threads=2 if len(archive) >= _LARGE_BYTES else 0,
        )
        done: bytes = zstandard.ZstdCompressor(compression_params=parameters).compress(archive)
        return done
    if compression == "gzip":
        return gzip.compress(archive, compresslevel=_GZIP_LEVEL, mtime=0)
    return archive


def _level(size: int) -> int:
    if size >= _HUGE_BYTES:
        return _HUGE_LEVEL
    return _ZSTD_LEVEL if size >= _LARGE_BYTES else _SMALL_LEVEL


def unpack(packed: bytes, compression: str) -> bytes:
    """Undoes `pack`. Raises BuildError when the bytes are cut short or damaged."""
    zstandard = load_zstandard()
    try:
        if compression == "zstd":
            size = zstandard.frame_content_size(packed)
            if not 0 <= size <= _UNPACKED_LIMIT:
                raise BuildError("the packed capture image does not say its size", hint="kdumpctl rebuild")
            unpacked: bytes = zstandard.ZstdDecompressor().decompress(packed)
            return unpacked
        if compression == "gzip":
            # For Python no bytes at all are a gzip file too.
            return gzip.decompress(packed or b"empty")
    except (zstandard.ZstdError, OSError, EOFError, zlib.error) as error:
        raise BuildError(
            f"the packed capture image is damaged: {error}", hint="rebuild the image: kdumpctl rebuild"
        ) from error
    return packed
