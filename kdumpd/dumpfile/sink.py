# SPDX-License-Identifier: GPL-2.0-or-later
"""What a dump writer writes to: a file that takes bytes at any offset. Targets provide it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from kdumpd.dumpfile.codecs import Buffer


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

    def sync(self) -> None:
        """Returns when all that was written is on stable storage; an error means that it may not be.

        May run in one thread while another writes.
        """


class Stream(Protocol):
    """What takes bytes one after the other: a pipe, a socket, a file that is only appended to."""

    name: str

    def send(self, *parts: Buffer) -> None:
        """All of `parts` in their order, or a KdumpError."""

    def sync(self) -> None:
        """Returns when all that was sent is as safe as the stream can make it."""
