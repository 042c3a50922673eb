# SPDX-License-Identifier: GPL-2.0-or-later
"""What the capture image needs for targets on the network: addresses, interfaces, drivers, a key and who is trusted."""

from __future__ import annotations

import dataclasses
import stat
from collections.abc import Sequence
from pathlib import Path

from kdumpd.config.capture import CaptureConfig, Destination, Fence, NfsDestination, SshDestination
from kdumpd.config.network import LinkKind, Network
from kdumpd.errors import BuildError, KdumpError
from kdumpd.host.network import card_devices, look_up, read_network
from kdumpd.image import contents, kmodules
from kdumpd.image.capture import find_shared
from kdumpd.image.cpio import Entry
from kdumpd.targets.known_hosts import read_keys

_PACKET = "af_packet"
_NFS = ("nfs", "nfsv4", "nfsv3")


def with_network(capture: CaptureConfig, root: Path, notes: list[str]) -> CaptureConfig:
    """`capture` with the addresses that its servers have now, and the network that leads to them.

    What cannot be reached becomes a sentence in `notes`, as long as there is another target; else its error is raised.
    """
    network = Network()
    destinations: list[Destination] = []
    troubles: list[KdumpError] = []
    for destination in capture.destinations:
        if isinstance(destination, NfsDestination | SshDestination):
            try:
                addresses = look_up(destination.server if isinstance(destination, NfsDestination) else destination.host)
                reached, found = _reachable(addresses, root)
                destination = dataclasses.replace(destination, addresses=reached)
                network = _joined(network, found)
            except KdumpError as error:
                troubles.append(error)
                notes.append(f"dumps cannot go to {destination}: {error}")
        destinations.append(destination)
    fence, network = _with_nodes(capture.fence, network, root, notes)
    if troubles and len(troubles) == len(destinations):
        raise troubles[0]
    return dataclasses.replace(
        capture, destinations=tuple(destinations), network=network if network.interfaces else None, fence=fence
    )


def _with_nodes(fence: Fence | None, network: Network, root: Path, notes: list[str]) -> tuple[Fence | None, Network]:
    """The nodes of a cluster with their addresses, and the network that leads to them too. Who cannot be reached
    becomes a sentence in `notes`: the dump comes first."""
    if fence is None:
        return None, network
    addresses: dict[str, None] = {}
    for node in fence.nodes:
        try:
            reached, found = _reachable(look_up(node), root)
            # One message a node: all addresses of a name are the same one's.
            addresses.setdefault(reached[0])
            network = _joined(network, found)
        except KdumpError as error:
            notes.append(f"the node {node} will not be told of a crash: {error}")
    return dataclasses.replace(fence, addresses=tuple(addresses)), network


def _reachable(addresses: Sequence[str], root: Path) -> tuple[tuple[str, ...], Network]:
    """Those of `addresses` that there is a way to: a name may have one of IPv6 where the machine has none."""
    reached: list[str] = []
    network = Network()
    trouble: KdumpError | None = None
    for address in addresses:
        try:
            network = _joined(network, read_network([address], root))
            reached.append(address)
        except KdumpError as error:
            trouble = trouble or error
    if not reached and trouble is not None:
        raise trouble
    return tuple(reached), network


def _joined(one: Network, other: Network) -> Network:
    interfaces = {interface.name: interface for interface in one.interfaces}
    for interface in other.interfaces:
        known = interfaces.get(interface.name, interface)
        interfaces[interface.name] = known.joined(interface.addresses, interface.leased, interface.dhcp_client)
    return Network(interfaces=tuple(interfaces.values()), routes=tuple(dict.fromkeys((*one.routes, *other.routes))))


def modules(index: kmodules.ModuleIndex, capture: CaptureConfig, root: Path) -> tuple[str, ...]:
    """The modules of cards, VLANs, bonds and NFS, in the order of loading. Raises BuildError."""
    names: list[str] = []
    kinds = set()
    for interface in () if capture.network is None else capture.network.interfaces:
        kinds.add(interface.kind)
        if interface.kind is LinkKind.CARD:
            chain = card_devices(interface.name, root)
            names.extend(name for device in reversed(chain.devices) for name in kmodules.for_device(index, device))
    names.extend(kmodules.named(index, "8021q") if LinkKind.VLAN in kinds else ())
    names.extend(kmodules.named(index, "bonding") if LinkKind.BOND in kinds else ())
    # udhcpc speaks by a packet socket; where that is built in there is nothing to load.
    names.extend([_PACKET] if has_leases(capture) and _PACKET in index.depends else [])
    if any(isinstance(destination, NfsDestination) for destination in capture.destinations):
        names.extend(name for wanted in _NFS for name in kmodules.named(index, wanted))
    return kmodules.order(index, names)


def add_tools(tree: contents.Tree, capture: CaptureConfig, listed: Sequence[str]) -> None:
    """busybox's ip, where there is a network, and udhcpc for addresses that came by DHCP. Raises BuildError when this
    busybox lacks ip; without udhcpc the addresses of now have to do."""
    if capture.network is None:
        return
    if "ip" not in listed:
        raise BuildError("busybox lacks ip, which sets the network up", hint="install busybox-static")
    tree.add_link(f"{contents.TOOLS}/ip", "busybox")
    tree.add_link("usr/bin/ip", f"/{contents.TOOLS}/busybox")
    if has_leases(capture) and "udhcpc" in listed:
        tree.add_link("usr/bin/udhcpc", f"/{contents.TOOLS}/busybox")
        data, facts = contents.read_source(str(find_shared("busybox/lease")))
        tree.add(Entry(path=f"{contents.TOOLS}/lease", mode=stat.S_IFREG | 0o755, content=data), facts)


def has_leases(capture: CaptureConfig) -> bool:
    """Whether an address came by DHCP."""
    return capture.network is not None and any(interface.leased for interface in capture.network.interfaces)


def add_trust(tree: contents.Tree, capture: CaptureConfig, root: Path) -> None:
    """The private key for dumps, 0600, and the keys of the servers: these and no others. Raises BuildError."""
    lines: dict[str, None] = {}
    places = set()
    for destination in capture.destinations:
        if not isinstance(destination, SshDestination):
            continue
        key = root / destination.key.lstrip("/")
        if not key.exists():
            raise BuildError(f"the key for {destination} is missing: {destination.key}", hint="kdumpctl propagate")
        data, facts = contents.read_source(str(key))
        tree.add(Entry(path=contents.merged(destination.key), mode=stat.S_IFREG | 0o600, content=data), facts)
        known = root / destination.known_hosts.lstrip("/")
        places.add(destination.known_hosts)
        for found in read_keys(known, destination.host, destination.port):
            lines.setdefault(found.line(destination.host, destination.port))
    for place in places:
        tree.add_text(contents.merged(place), "".join(lines))


def asks_for_ssh(capture: CaptureConfig) -> bool:
    """Whether the collector needs paramiko."""
    return any(isinstance(destination, SshDestination) for destination in capture.destinations)
