# SPDX-License-Identifier: GPL-2.0-or-later
"""libzstd and libdeflate called directly, a batch of pages at a time.

A page is small: what a call costs counts as much as what it does. Here the arguments of all calls for a batch are
made beforehand, and one `map` makes the calls. A compressor is for one thread.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from itertools import repeat
from typing import Any

import numpy as np

from kdumpd.dumpfile.diskdump import BLOCK_SIZE, Codec
from kdumpd.vmcore.arrays import NDArray

_Argument = Any  # what from_param gives: opaque, and the only thing that ctypes passes on without converting it
_word = ctypes.c_size_t.from_param

# zstd.h, stable since 1.4.0: ZSTD_c_compressionLevel and the rest of ZSTD_cParameter.
_ZSTD_LEVEL, _ZSTD_CONTENT_SIZE = 100, 200


def load_library(name: str) -> ctypes.CDLL | None:
    """The shared library, by the name that its Debian, Fedora and SUSE packages give it."""
    try:
        return ctypes.CDLL(name)
    except OSError:
        return None


# Opened when this module is imported, so that whoever makes the capture image sees that it is needed.
_ZSTD = load_library("libzstd.so.1")


class PageBuffer:
    """Room for some pages of one size, and their addresses as arguments."""

    def __init__(self, count: int, memory: memoryview | None = None, page_size: int = BLOCK_SIZE) -> None:
        """In `memory`, of `count` pages, or in memory of its own."""
        room: NDArray[np.uint8] = (
            np.empty(count * page_size, dtype=np.uint8) if memory is None else np.frombuffer(memory, dtype=np.uint8)
        )
        self.pages = room.reshape(count, page_size)
        self.page_size = page_size
        self.view = memoryview(self.pages).cast("B")  # type: ignore[arg-type] # numpy's arrays are buffers
        start = self.pages.ctypes.data
        self.addresses = list(map(_word, range(start, start + count * page_size, page_size)))


class NativeCompressor:
    """Packs pages of one PageBuffer into the same places of another."""

    def __init__(self, codec: Codec, level: int, page_size: int = BLOCK_SIZE) -> None:
        """Raises OSError when the library for `codec` is not there."""
        self._free: Callable[[_Argument], Any] | None = None
        library = _ZSTD if codec is Codec.ZSTD else load_library("libdeflate.so.0") if codec is Codec.ZLIB else None
        if library is None:
            raise OSError(f"no library for {codec.name.lower()}")
        self._page = _word(page_size)
        # One less than a page: what does not shrink is an error to both libraries, and not packed to its end.
        self._room = _word(page_size - 1)
        self._is_zstd = codec is Codec.ZSTD
        make, function, free = (
            (library.ZSTD_createCCtx, library.ZSTD_compress2, library.ZSTD_freeCCtx)
            if self._is_zstd
            else (library.libdeflate_alloc_compressor, library.libdeflate_zlib_compress,
                  library.libdeflate_free_compressor)
        )  # fmt: skip
        make.restype = ctypes.c_void_p
        function.restype = ctypes.c_size_t
        context = make() if self._is_zstd else make(level)
        if not context:
            raise MemoryError
        self._context, self._function, self._free = _word(context), function, free
        if self._is_zstd:
            # The size of what is packed picks small tables; it need not be stored, every reader knows it.
            for key, value in ((_ZSTD_LEVEL, level), (_ZSTD_CONTENT_SIZE, 0)):
                library.ZSTD_CCtx_setParameter(self._context, key, value)

    def __del__(self) -> None:
        if self._free is not None:
            self._free(self._context)

    def pack(self, source: PageBuffer, target: PageBuffer, which: Sequence[int]) -> list[int]:
        """Packs the pages at the positions `which` of `source`, each to the same position of `target`.

        Returns the size of each; what is 0 or not below the size of a page did not shrink.
        """
        pages = [source.addresses[index] for index in which]
        rows = [target.addresses[index] for index in which]
        if self._is_zstd:
            return list(map(self._function, repeat(self._context), rows, repeat(self._room), pages, repeat(self._page)))
        return list(map(self._function, repeat(self._context), pages, repeat(self._page), rows, repeat(self._room)))
