# SPDX-License-Identifier: GPL-2.0-or-later
"""Which IPv4 addresses of the machine came by DHCP: the kernel knows those with an end, clients note theirs in files.

Sources: rtnetlink(7), rtm_getaddr of include/uapi/linux/if_addr.h; /run/systemd/netif/leases of systemd-networkd
("private data", keys as in systemd 252); NetworkManager's internal client; dhclient.leases(5).
"""

from __future__ import annotations

import contextlib
import ipaddress
import re
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

_GETADDR, _NEWADDR, _DONE, _ERROR = 22, 20, 3, 2
_REQUEST, _DUMP = 0x1, 0x300
_LOCAL = 2  # IFA_LOCAL
_PERMANENT = 0x80  # IFA_F_PERMANENT: without an end
_FILES = (
    "run/systemd/netif/leases/*",
    "var/lib/NetworkManager/*.lease",
    *("var/lib/dhcp/*.leases", "var/lib/dhclient/*.lease*", "var/lib/dhcp/*.lease"),
)
_ADDRESS = re.compile(r"^(?:ADDRESS=|\s*fixed-address )([0-9.]+);?$", re.MULTILINE)
_CLIENT = re.compile(r"^CLIENTID=([0-9a-f]{4,510})$", re.MULTILINE)


def read_leased(root: Path = Path("/")) -> dict[ipaddress.IPv4Address, str]:
    """Addresses that came by DHCP, each with the client identifier that the server knows it by (option 61, as
    hexadecimal digits), or "" where none is known: clients of old send the card's address."""
    found = dict.fromkeys(_with_an_end() if root == Path("/") else (), "")
    for pattern in _FILES:
        for path in sorted(root.glob(pattern)):
            with contextlib.suppress(OSError):
                found |= parse_lease(path.read_text(errors="replace"))
    return found


def parse_lease(text: str) -> dict[ipaddress.IPv4Address, str]:
    """The addresses in what a client noted."""
    client = _CLIENT.search(text)
    found = {}
    for match in _ADDRESS.finditer(text):
        with contextlib.suppress(ValueError):
            found[ipaddress.IPv4Address(match[1])] = "" if client is None else client[1]
    return found


def _with_an_end() -> tuple[ipaddress.IPv4Address, ...]:
    """What `ip address` calls dynamic; nothing where the kernel is not to be asked."""
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as kernel:
            kernel.settimeout(5)
            # nlmsghdr: length, type, flags, sequence, port; ifaddrmsg: family, prefix, flags, scope, index.
            kernel.send(struct.pack("=IHHII4BI", 24, _GETADDR, _REQUEST | _DUMP, 1, 0, socket.AF_INET, 0, 0, 0, 0))
            return tuple(_answers(kernel))
    except OSError:
        return ()


def _answers(kernel: socket.socket) -> Iterator[ipaddress.IPv4Address]:
    while True:
        data = kernel.recv(1 << 16)
        while len(data) >= 16:
            length, kind = struct.unpack_from("=IH", data)
            if kind in (_DONE, _ERROR) or length < 16:
                return
            if kind == _NEWADDR and length >= 24:
                yield from _temporary(data[16:length])
            data = data[(length + 3) & ~3 :]
        if data:
            return


def _temporary(message: bytes) -> Iterator[ipaddress.IPv4Address]:
    """The address in an ifaddrmsg and its attributes, if it has an end."""
    if message[2] & _PERMANENT:
        return
    at = 8
    while at + 4 <= len(message):
        length, kind = struct.unpack_from("=HH", message, at)
        if kind == _LOCAL and length == 8:
            yield ipaddress.IPv4Address(message[at + 4 : at + 8])
        if length < 4:
            return
        at += (length + 3) & ~3
