# SPDX-License-Identifier: GPL-2.0-or-later
"""Sets the network up in the capture kernel, with busybox's ip, and waits until it carries. Addresses that came by DHCP
are asked for again.

A card is found by its address, since its name may be another one here. What is there already stays, so that a second
target finds the network as the first one left it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import ipaddress
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from kdumpd.config.network import Interface, LinkKind, Network
from kdumpd.errors import TargetError, os_reason
from kdumpd.targets.dhcp import TRIES, Lease, lease
from kdumpd.targets.local import run_tool
from kdumpd.targets.target import Store, Target

_POLL_SEC = 0.2
_NET = Path("/sys/class/net")
_LOCK = Path("/run/kdumpd/network.lock")
_IPV6 = Path("/proc/sys/net/ipv6/conf")


class NetworkedTarget(Target):
    """A target that needs the network first."""

    def __init__(self, target: Target, network: Network, deadline_sec: float) -> None:
        self.name = target.name
        self._target = target
        self._network = network
        self._deadline_sec = deadline_sec

    @contextlib.contextmanager
    def open_crash(self, name: str, alive: Callable[[], None]) -> Iterator[Store]:
        """As Target.open_crash."""
        bring_up(self._network, alive, self._deadline_sec)
        with self._target.open_crash(name, alive) as store:
            yield store


def bring_up(network: Network, alive: Callable[[], None], deadline_sec: float, sysfs: Path = _NET) -> None:
    """Interfaces, addresses and routes. Raises TargetError naming what does not come up within `deadline_sec`."""
    end = time.monotonic() + deadline_sec
    names: dict[str, str] = {}
    for interface in network.interfaces:
        names[interface.name] = _make(interface, names, end, alive, sysfs)
    for interface in network.interfaces:
        if interface.addresses:
            _await_carrier(names[interface.name], end, alive, sysfs)
    leases = _leases(network, names, end, alive)
    for interface in network.interfaces:
        given = leases.get(interface.name)
        kept = [each for each in interface.addresses if given is None or each not in interface.leased]
        for address in (*([] if given is None else [str(given.address)]), *kept):
            _ip("address", "replace", address, "dev", names[interface.name])
    for route in network.routes:
        if route.device in leases:
            route = dataclasses.replace(route, gateway=leases[route.device].gateway(route))
        length = ipaddress.ip_address(route.to).max_prefixlen
        family = "-6" if length == 128 else "-4"
        device = names[route.device]
        if route.gateway:
            with contextlib.suppress(TargetError):  # on the network of an address it is known already
                _ip(family, "route", "replace", f"{route.gateway}/{length}", "dev", device)
            _ip(family, "route", "replace", f"{route.to}/{length}", "via", route.gateway, "dev", device)
        else:
            _ip(family, "route", "replace", f"{route.to}/{length}", "dev", device)


def _leases(network: Network, names: dict[str, str], end: float, alive: Callable[[], None]) -> dict[str, Lease]:
    """What the interfaces were given whose addresses came by DHCP."""
    found = {}
    for interface in network.interfaces:
        if interface.leased:
            alive()
            with _alone(end, alive):
                given = lease(interface, names[interface.name], max(1, min(TRIES, int(end - time.monotonic()))))
            if given is not None:
                found[interface.name] = given
    return found


def _make(interface: Interface, names: dict[str, str], end: float, alive: Callable[[], None], sysfs: Path) -> str:
    """The interface's name here, once it is there and up."""
    name = interface.name
    if interface.kind is LinkKind.CARD:
        name = _await_card(interface, end, alive, sysfs)
    else:
        with _alone(end, alive):
            if interface.kind is LinkKind.BOND:
                _bond(interface, names, sysfs)
            elif not (sysfs / name).exists():
                below = names[interface.lower[0]]
                _ip("link", "add", "link", below, "name", name, "type", "vlan", "id", str(interface.vlan))
    if interface.mtu != 1500:
        _ip("link", "set", "dev", name, "mtu", str(interface.mtu))
    # Others are asked whether they have an address (DAD) before an IPv6 one can be used: there is no time for that, and
    # busybox's ip has no word for it.
    with contextlib.suppress(OSError):
        (_IPV6 / name / "accept_dad").write_text("0\n")
    _ip("link", "set", "dev", name, "up")
    return name


@contextlib.contextmanager
def _alone(end: float, alive: Callable[[], None]) -> Iterator[None]:
    """Two processes would make the same bond, each in the way of the other."""
    try:
        file = _LOCK.open("w")
    except OSError:
        yield  # nowhere but in a capture kernel is there another one
        return
    with file:
        while time.monotonic() < end:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                alive()
                time.sleep(_POLL_SEC)
        yield


def _await_card(interface: Interface, end: float, alive: Callable[[], None], sysfs: Path) -> str:
    while True:
        for folder in sorted(sysfs.iterdir()):
            # One that is in a bond has the bond's address.
            mac = _read(folder / "bonding_slave/perm_hwaddr") or _read(folder / "address")
            if (folder / "device").exists() and mac.lower() == interface.mac:
                return folder.name
        if time.monotonic() >= end:
            raise TargetError(
                f"the network card {interface.mac} ({interface.name}) did not appear",
                hint="is its driver in the image, and does it need a firmware file? Rebuild: kdumpctl rebuild",
            )
        alive()
        time.sleep(_POLL_SEC)


def _bond(interface: Interface, names: dict[str, str], sysfs: Path) -> None:
    """A bond of these cards. bond0 is there without any as soon as its driver is loaded (max_bonds of bonding.rst)."""
    options = sysfs / interface.name / "bonding"
    if {names[lower] for lower in interface.lower} <= set(_read(options / "slaves").split()):
        return
    try:
        if not options.parent.exists():
            (sysfs / "bonding_masters").write_text(f"+{interface.name}\n")
        (options / "mode").write_text(f"{interface.bond_mode}\n")
        (options / "miimon").write_text("100\n")
        for lower in interface.lower:
            _ip("link", "set", "dev", names[lower], "down")
            (options / "slaves").write_text(f"+{names[lower]}\n")
    except OSError as error:
        raise TargetError(f"the bond {interface.name} cannot be made: {os_reason(error)}") from error
    if interface.mac:
        _ip("link", "set", "dev", interface.name, "address", interface.mac)


def _await_carrier(name: str, end: float, alive: Callable[[], None], sysfs: Path) -> None:
    while _read(sysfs / name / "carrier") != "1":
        if time.monotonic() >= end:
            raise TargetError(f"the network interface {name} has no link", hint="is the cable in, and the switch up?")
        alive()
        time.sleep(_POLL_SEC)


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""  # an interface that is down has no carrier to read (EINVAL)


def _ip(*words: str) -> None:
    done = run_tool(["ip", *words])
    if done.returncode != 0:
        reason = done.stderr.strip().splitlines()[-1:] or [f"status {done.returncode}"]
        raise TargetError(f"ip {' '.join(words)} failed: {reason[0]}")
