# SPDX-License-Identifier: GPL-2.0-or-later
"""The log of the kernel that runs now, which is the capture kernel's: what became of its disks is in there."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

_LIMIT_BYTES = 1 << 20
_RECORD_BYTES = 8192  # CONSOLE_EXT_LOG_MAX of the kernel (include/linux/printk.h)


def read_messages(device: Path = Path("/dev/kmsg")) -> bytes:
    """All records of `device` as dmesg(1) shows them, up to 1 MiB. Raises OSError when it cannot be opened.

    A record is "priority,number,microseconds,flags;text", then lines of a dictionary that begin with a blank
    (Documentation/ABI/testing/dev-kmsg).
    """
    lines: list[bytes] = []
    size = 0
    handle = os.open(device, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        while size < _LIMIT_BYTES:
            try:
                record = os.read(handle, _RECORD_BYTES)
            except BrokenPipeError:  # it was overwritten meanwhile: the next read gives the oldest that is left
                continue
            except BlockingIOError:
                break
            if not record:
                break
            head, _, text = record.partition(b";")
            usec = 0
            with contextlib.suppress(ValueError, IndexError):
                usec = int(head.split(b",")[2])
            line = b"[%5d.%06d] %s\n" % (usec // 1_000_000, usec % 1_000_000, text.split(b"\n", 1)[0])
            lines.append(line)
            size += len(line)
    finally:
        os.close(handle)
    return b"".join(lines)
