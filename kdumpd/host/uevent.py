# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel's own device events (lib/kobject_uevent.c), read straight from its netlink socket.

Neither udevd nor a rule that starts programs is needed. These events come before udevd has made its links below /dev.
"""

from __future__ import annotations

import dataclasses
import socket

_NETLINK_KOBJECT_UEVENT = 15
_KERNEL_GROUP = 1
# A machine that plugs in a terabyte sends thousands of events at once; the kernel drops what does not fit.
_QUEUE_BYTES = 1 << 20
_MESSAGE_BYTES = 8 << 10


@dataclasses.dataclass(frozen=True, slots=True)
class Uevent:
    """`action` is add, remove, change, online, offline, ...; `subsystem` is cpu, memory, block, ..."""

    action: str
    subsystem: str
    device: str


def parse_uevent(message: bytes) -> Uevent | None:
    """One message: "action@device" and then NAME=value, each ended by NUL. None for anything else, such as udevd's."""
    head, *rest = message.decode(errors="replace").split("\0")
    action, at, _ = head.partition("@")
    values = dict(entry.split("=", 1) for entry in rest if "=" in entry)
    if not at or values.get("ACTION") != action:
        return None
    return Uevent(action=action, subsystem=values.get("SUBSYSTEM", ""), device=values.get("DEVPATH", ""))


def open_uevents() -> socket.socket:
    """A socket that does not block and gets all of them; no right is needed. Raises OSError."""
    found = socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK, _NETLINK_KOBJECT_UEVENT)
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _QUEUE_BYTES)
        found.bind((0, _KERNEL_GROUP))
    except OSError:
        found.close()
        raise
    return found


def read_uevents(source: socket.socket) -> list[Uevent]:
    """All that wait, without waiting for more. Raises OSError (ENOBUFS) when the kernel dropped some."""
    events: list[Uevent] = []
    while True:
        try:
            message = source.recv(_MESSAGE_BYTES)
        except BlockingIOError:
            return events
        if not message:
            return events
        event = parse_uevent(message)
        if event is not None:
            events.append(event)
