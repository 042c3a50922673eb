# SPDX-License-Identifier: GPL-2.0-or-later
"""zlib's format by ISA-L, at its level 1: faster than libdeflate, for 2 % more bytes.

igzip_lib.h, struct isal_zstream: a state of some 80 KiB begins with what is public, which each call changes. So it is
written anew for each page, from rows that are made for a whole batch. The state lasts from page to page but for the
checksum, which begins anew with each call (isal_deflate_stateless).
"""

from __future__ import annotations

import ctypes
import zlib
from collections.abc import Sequence

import numpy as np

from kdumpd.dumpfile.native import PageBuffer, load_library

# What is different for each page. It is the first of the state; the rest follows at these offsets.
_PAGE = np.dtype(
    [("next_in", "u8"), ("avail_in", "u4"), ("total_in", "u4"), ("next_out", "u8"), ("avail_out", "u4"),
     ("total_out", "u4")]
)  # fmt: skip
_ROW = np.dtype((np.void, _PAGE.itemsize))  # the same as bytes
_TOTAL_OUT = 28
_LEVEL, _LEVEL_BUF_SIZE, _LEVEL_BUF, _END_OF_STREAM, _GZIP_FLAG = 40, 44, 48, 56, 60
# The trailer of zlib's format without its header: the library writes one header only for a state, however many pages.
_IGZIP_ZLIB_NO_HDR = 4
_HEADER = (0x78, 0x01)  # RFC 1950: deflate, a window of 32 KiB, the fastest
# The state takes 82,384 bytes (2.30); what is not touched is no memory. Then ISAL_DEF_LVL1_SMALL: a hash table and
# 16 Ki tokens.
_STATE = 256 << 10
_LEVEL_ROOM = (4 + 2 * 8 + 4 * 16) << 10


class IsalCompressor:
    """Packs pages of one PageBuffer into the same places of another, as NativeCompressor does; for one thread."""

    def __init__(self) -> None:
        """Raises OSError when the library is not there, or does not do what it should."""
        library = load_library("libisal.so.2")
        if library is None:
            raise OSError("no libisal")
        self._pack = library.isal_deflate_stateless
        self._memory = np.zeros(_STATE + _LEVEL_ROOM, dtype=np.uint8)
        address = self._memory.ctypes.data
        self._state = ctypes.c_size_t.from_param(address)
        library.isal_deflate_stateless_init(self._state)
        for offset, kind, value in (
            (_LEVEL, "u4", 1),
            (_LEVEL_BUF_SIZE, "u4", _LEVEL_ROOM),
            (_LEVEL_BUF, "u8", address + _STATE),
            (_END_OF_STREAM, "u2", 1),
            (_GZIP_FLAG, "u2", _IGZIP_ZLIB_NO_HDR),
        ):
            self._memory[offset : offset + np.dtype(kind).itemsize].view(kind)[0] = value
        self._current = memoryview(self._memory)[: _PAGE.itemsize]  # type: ignore[arg-type] # a buffer
        self._written = ctypes.c_uint32.from_buffer(self._memory, _TOTAL_OUT)  # type: ignore[arg-type] # as above
        self._try_out()

    def pack(self, source: PageBuffer, target: PageBuffer, which: Sequence[int]) -> list[int]:
        """Packs the pages at the positions `which` of `source`, each to the same position of `target`.

        Returns the size of each, 0 of one that did not shrink.
        """
        if not len(which):
            return []
        page_size, header = source.pages.shape[1], len(_HEADER)
        places = np.array(which, dtype=np.uint64) * np.uint64(page_size)
        pages = np.zeros(len(which), dtype=_PAGE)
        pages["next_in"] = places + np.uint64(source.pages.ctypes.data)
        pages["avail_in"] = page_size
        pages["next_out"] = places + np.uint64(target.pages.ctypes.data + header)
        # One less than a page: what does not shrink is an error, and not packed to its end.
        pages["avail_out"] = page_size - 1 - header
        target.pages[which, :header] = _HEADER
        pack, state, current, written = self._pack, self._state, self._current, self._written
        sizes = []
        for row in pages.view(_ROW).tolist():
            current[:] = row
            sizes.append(0 if pack(state) else header + written.value)
        return sizes

    def _try_out(self) -> None:
        """Two pages there and back: what lies where in the state is known of libisal.so.2 only. Raises OSError."""
        source, target = PageBuffer(2), PageBuffer(2)
        source.pages[:] = np.arange(source.pages.size).reshape(source.pages.shape) ** 2 >> 7 & 0x3F
        for index, size in enumerate(self.pack(source, target, range(2))):
            try:
                same = zlib.decompress(target.pages[index, :size].tobytes()) == source.pages[index].tobytes()
            except zlib.error:
                same = False
            if not same:
                raise OSError("libisal is not as it was")
