# SPDX-License-Identifier: GPL-2.0-or-later
"""What bytes are sent to one after the other: standard output, a pipe, a file without a way back."""

from __future__ import annotations

import errno
import os

from kdumpd.errors import NoSpaceError, TargetError, os_reason
from kdumpd.targets.files import NO_SPACE

_MOST_PARTS = 1024  # IOV_MAX of Linux


class OutputStream:
    """An open file descriptor as a stream (dumpfile.sink.Stream). `sent` counts bytes."""

    def __init__(self, fd: int, name: str) -> None:
        """`fd` stays its owner's."""
        self._fd = fd
        self.name = name
        self.sent = 0

    def send(self, *parts: bytes | bytearray | memoryview) -> None:
        """All of `parts` in their order. Raises NoSpaceError or TargetError."""
        left = [memoryview(part).cast("B") for part in parts if len(part)]
        while left:
            try:
                count = os.writev(self._fd, left[:_MOST_PARTS])
            except OSError as error:
                kind = NoSpaceError if error.errno in NO_SPACE else TargetError
                reason = "nobody reads it any more" if error.errno == errno.EPIPE else os_reason(error)
                raise kind(f"{self.name} cannot be written after {self.sent} bytes: {reason}") from error
            self.sent += count
            while left and count >= len(left[0]):
                count -= len(left.pop(0))
            if left:
                left[0] = left[0][count:]

    def sync(self) -> None:
        """Waits for stable storage, where the stream is a file. Raises TargetError."""
        try:
            os.fsync(self._fd)
        except OSError as error:
            # A pipe, a socket and a terminal have nothing to wait for.
            if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EROFS):
                raise TargetError(f"{self.name} did not reach stable storage: {os_reason(error)}") from error
