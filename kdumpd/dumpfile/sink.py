# SPDX-License-Identifier: GPL-2.0-or-later
"""What a dump writer writes to: a file that takes bytes at any offset. Targets provide it."""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from kdumpd.dumpfile.codecs import Buffer
from kdumpd.dumpfile.manifest import Region
from kdumpd.dumpfile.packing import PackedPages
from kdumpd.vmcore.arrays import NDArray


class Sink(Protocol):
    """Errors are KdumpErrors (NoSpaceError when the target is full).

    A sink that is not `rewritable` is a stream of pieces: each offset is written once and never read.
    """

    name: str
    rewritable: bool

    def write_at(self, offset: int, data: Buffer) -> None:
        """All of `data` at `offset`, or an error."""

    def write_parts(self, offset: int, parts: Sequence[Buffer]) -> None:
        """All of `parts`, one behind the other, from `offset` on, or an error."""

    def read_at(self, offset: int, size: int) -> bytes:
        """Up to `size` bytes that were written before; fewer at the end."""

    def reserve(self, size: int) -> None:
        """Takes the first `size` bytes of the file now, so that writing them later cannot fail for want of room."""

    def free_bytes(self) -> int | None:
        """How much more can be written, as far as is known; None when there is no way to know."""

    def scratch(self, size: int) -> mmap.mmap | None:
        """Room for `size` bytes beside the file, mapped and gone with the program; None where there is none."""

    def sync(self) -> None:
        """Returns when all that was written is on stable storage; an error means that it may not be.

        May run in one thread while another writes.
        """


class PageWriter(Protocol):
    """A dump that is being written to a sink, in whatever format. `count` pages are to be written, `written` have
    been; `write_seconds` is what the target took for them."""

    count: int
    written: int
    write_seconds: float

    @property
    def size(self) -> int:
        """Bytes of the file so far."""

    @property
    def data_size(self) -> int:
        """Bytes of page data so far."""

    def write(self, pages: PackedPages, pfns: NDArray[np.int64]) -> None:
        """Adds the pages of ascending `pfns`, none of which was written before."""

    def checkpoint(self) -> None:
        """Returns when all pages written so far can be read from the file, whatever happens next."""

    def finish(self, *, complete: bool = True) -> tuple[Region, ...]:
        """Declares the dump complete, once all of it is on stable storage; or leaves it at incomplete, if these pages
        are not all that were wanted. The checksums of its regions, if any."""

    def close(self) -> None:
        """Ends what works for the writer."""


class Stream(Protocol):
    """What takes bytes one after the other: a pipe, a socket, a file that is only appended to."""

    name: str

    def send(self, *parts: Buffer) -> None:
        """All of `parts` in their order, or a KdumpError."""

    def sync(self) -> None:
        """Returns when all that was sent is as safe as the stream can make it."""
