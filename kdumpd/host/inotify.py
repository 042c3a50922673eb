# SPDX-License-Identifier: GPL-2.0-or-later
"""inotify(7) by way of libc: one descriptor that becomes readable when a watched file or folder changes.

Gio.FileMonitor would do as much with a thread and an object for each folder. Knows nothing of what is watched or why.
"""

from __future__ import annotations

import ctypes
import dataclasses
import os
import struct
from pathlib import Path

MODIFY = 0x0002
CLOSE_WRITE = 0x0008
CLOSE_NOWRITE = 0x0010
MOVED_FROM = 0x0040
MOVED_TO = 0x0080
CREATE = 0x0100
DELETE = 0x0200
DELETE_SELF = 0x0400
MOVE_SELF = 0x0800
OVERFLOW = 0x4000  # events were lost
IGNORED = 0x8000  # the watch is gone: its file was deleted or unmounted

MASK_ADD = 0x20000000  # to what the inode is watched for already

_HEAD = struct.Struct("iIII")  # struct inotify_event without its name
_BUFFER_BYTES = 64 << 10


@dataclasses.dataclass(frozen=True, slots=True)
class Event:
    """`name` is the entry of a watched folder, empty when the watched thing itself changed."""

    watch: int
    mask: int
    name: str


def parse_events(data: bytes) -> list[Event]:
    """The events in what a read() gave; it never ends within one."""
    events, offset = [], 0
    while offset + _HEAD.size <= len(data):
        watch, mask, _cookie, length = _HEAD.unpack_from(data, offset)
        offset += _HEAD.size
        name = data[offset : offset + length].rstrip(b"\0")
        events.append(Event(watch, mask, os.fsdecode(name)))
        offset += length
    return events


class Inotify:
    """One inotify instance. Watches may be added in one thread while another one reads."""

    def __init__(self) -> None:
        """Raises OSError when the user has too many instances."""
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._libc.inotify_add_watch.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_uint32]
        self.fd: int = self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self.fd < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), "inotify")

    def add(self, path: Path, mask: int) -> int:
        """Watches `path`; the number of the watch, the same as before when its inode is watched already.

        Raises OSError: ENOENT, or ENOSPC when fs.inotify.max_user_watches is reached.
        """
        watch = int(self._libc.inotify_add_watch(self.fd, os.fsencode(path), mask))
        if watch < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(path))
        return watch

    def remove(self, watch: int) -> None:
        """Ends a watch; one that is gone already is fine."""
        self._libc.inotify_rm_watch(self.fd, watch)

    def read(self) -> list[Event]:
        """What happened since the last call, without waiting for more."""
        try:
            return parse_events(os.read(self.fd, _BUFFER_BYTES))
        except BlockingIOError:
            return []

    def close(self) -> None:
        """Ends all watches."""
        os.close(self.fd)
