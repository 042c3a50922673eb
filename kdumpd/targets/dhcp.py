# SPDX-License-Identifier: GPL-2.0-or-later
"""Asks for an address that came by DHCP once more, with busybox's udhcpc: the machine may have another one by now, or
the server may have given it away.

The server of leases may be gone, as whatever crashed this machine: it is asked for a few seconds, and then the address
of when the image was built has to do.
"""

from __future__ import annotations

import contextlib
import dataclasses
import ipaddress
import time
from pathlib import Path

from kdumpd.config.network import Interface, Route
from kdumpd.errors import TargetError
from kdumpd.targets.local import run_tool

TRIES = 3  # a second each
_SCRIPT = "/kdumpd/bin/lease"
_KEPT = Path("/run/kdumpd")
# Whoever got no answer is not made to wait again by the next target, or by the log that goes elsewhere.
_NO_ANSWER_SEC = 30.0


@dataclasses.dataclass(frozen=True, slots=True)
class Lease:
    """An address with its prefix length, and the router on its network, if there is one."""

    address: ipaddress.IPv4Interface
    router: str = ""

    def gateway(self, route: Route) -> str:
        """Where packets of `route` go first; "" for an address on the network itself."""
        to = ipaddress.ip_address(route.to)
        if to.version != 4:
            return route.gateway
        if to in self.address.network:
            return ""
        if route.gateway and ipaddress.ip_address(route.gateway) in self.address.network:
            return route.gateway
        return self.router or route.gateway


def lease(interface: Interface, device: str, tries: int = TRIES, kept: Path = _KEPT) -> Lease | None:
    """What the network's server gives `interface`, which is called `device` here; None when there is no answer in
    `tries` seconds and a little more. Asked once for all targets: the answer is kept in a file."""
    file = kept / f"lease-{device}"
    try:
        text = file.read_text()
        if text or time.time() - file.stat().st_mtime < _NO_ANSWER_SEC:
            return parse(text)
    except OSError:
        pass  # nobody has asked yet
    text = _ask(interface, device, tries)
    with contextlib.suppress(OSError):  # then the next one asks again
        file.write_text(text)
    return parse(text)


def _ask(interface: Interface, device: str, tries: int) -> str:
    words = ["udhcpc", "-f", "-q", "-n", "-t", str(tries), "-T", "1", "-i", device, "-s", _SCRIPT]
    words += ["-r", interface.leased[0].partition("/")[0]]
    if interface.dhcp_client:
        words += ["-C", "-x", f"0x3d:{interface.dhcp_client}"]
    try:
        return run_tool(words).stdout
    except TargetError:
        return ""  # an image without it


def parse(text: str) -> Lease | None:
    """The line of initramfs/busybox/lease: address/prefix and routers. None for anything else."""
    for line in text.splitlines():
        words = line.split()
        if words[:1] != ["lease"] or len(words) < 2:
            continue
        try:
            router = str(ipaddress.IPv4Address(words[2])) if len(words) > 2 else ""
            return Lease(ipaddress.IPv4Interface(words[1]), router)
        except ValueError:
            return None
    return None
