# SPDX-License-Identifier: GPL-2.0-or-later
"""Through which interface a server is reached, and what that is made of: from /proc/net and sysfs, without a tool.

Of the routing tables only the main one is looked at (/proc/net/route, ipv6_route); rules are not. Addresses are taken
as they are now. Those that came by DHCP are marked, since others may be given by then; but a server of leases may be
what just failed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import ipaddress
import socket
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path

from kdumpd.config.network import Interface, LinkKind, Network, Route
from kdumpd.errors import TargetError, UnsupportedError
from kdumpd.host import blockdev
from kdumpd.host.leases import read_leased

_UP, _GATEWAY, _REJECT = 0x1, 0x2, 0x200  # flags of routes (include/uapi/linux/route.h)
_TEMPORARY, _TENTATIVE, _DADFAILED = 0x01, 0x40, 0x08  # flags of addresses (include/uapi/linux/if_addr.h)
_GLOBAL, _SITE = 0x00, 0x40  # scopes in if_inet6
_NAME_SEC = 20.0

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Net = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclasses.dataclass(frozen=True, slots=True)
class TableEntry:
    """A line of a routing table; `gateway` is None for what is reached directly."""

    to: Net
    gateway: Address | None
    device: str
    metric: int


def parse_route(text: str) -> tuple[TableEntry, ...]:
    """/proc/net/route: hexadecimal numbers in the order of bytes of the machine, which is little-endian."""
    found = []
    for line in text.splitlines()[1:]:
        words = line.split()
        if len(words) < 8 or not int(words[3], 16) & _UP or int(words[3], 16) & _REJECT:
            continue
        to, gateway, mask = (_ipv4(words[index]) for index in (1, 2, 7))
        with contextlib.suppress(ValueError):  # a mask with holes
            net = ipaddress.IPv4Network(f"{to}/{mask}")
            through = gateway if int(words[3], 16) & _GATEWAY else None
            found.append(TableEntry(net, through, words[0], int(words[6])))
    return tuple(found)


def _ipv4(word: str) -> ipaddress.IPv4Address:
    return ipaddress.IPv4Address(int(word, 16).to_bytes(4, "little"))


def parse_route6(text: str) -> tuple[TableEntry, ...]:
    """/proc/net/ipv6_route: destination, length, source, length, gateway, metric, uses, references, flags, device."""
    found = []
    for line in text.splitlines():
        words = line.split()
        if len(words) < 10 or not int(words[8], 16) & _UP or int(words[8], 16) & _REJECT or words[9] == "lo":
            continue
        to = ipaddress.IPv6Network((int(words[0], 16), int(words[1], 16)))
        gateway = ipaddress.IPv6Address(int(words[4], 16)) if int(words[8], 16) & _GATEWAY else None
        found.append(TableEntry(to, gateway, words[9], int(words[5], 16)))
    return tuple(found)


def parse_local(text: str) -> tuple[ipaddress.IPv4Address, ...]:
    """The machine's own addresses in /proc/net/fib_trie: leaves that are followed by "/32 host LOCAL"."""
    found: dict[ipaddress.IPv4Address, None] = {}
    leaf = ""
    for line in text.splitlines():
        words = line.split()
        if len(words) >= 2 and words[0] == "|--":
            leaf = words[1]
        elif words[:3] == ["/32", "host", "LOCAL"] and leaf:
            found.setdefault(ipaddress.IPv4Address(leaf))
    return tuple(address for address in found if not address.is_loopback)


def parse_inet6(text: str) -> dict[str, tuple[str, ...]]:
    """/proc/net/if_inet6: addresses with their prefix, by interface; those of a link, or for a while, left out."""
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        words = line.split()
        if len(words) < 6 or int(words[3], 16) not in (_GLOBAL, _SITE):
            continue
        if int(words[4], 16) & (_TEMPORARY | _TENTATIVE | _DADFAILED):
            continue
        address = ipaddress.IPv6Address(int(words[0], 16))
        found.setdefault(words[5], []).append(f"{address}/{int(words[2], 16)}")
    return {name: tuple(addresses) for name, addresses in found.items()}


def best(table: Iterable[TableEntry], to: Address) -> TableEntry | None:
    """The entry that the kernel takes: the longest prefix, and of these the one with the lowest metric."""
    fitting = [entry for entry in table if entry.to.version == to.version and to in entry.to]
    return min(fitting, key=lambda entry: (-entry.to.prefixlen, entry.metric), default=None)


def read_network(addresses: Sequence[str], root: Path = Path("/")) -> Network:
    """What leads to each of `addresses`. Raises TargetError where there is no way, UnsupportedError where the capture
    kernel could not set it up."""
    table = (*parse_route(_text(root, "route")), *parse_route6(_text(root, "ipv6_route")))
    local = parse_local(_text(root, "fib_trie"))
    inet6 = parse_inet6(_text(root, "if_inet6"))
    clients = {str(address): client for address, client in read_leased(root).items()}
    interfaces: dict[str, Interface] = {}
    routes: dict[Route, None] = {}
    for text in addresses:
        to = ipaddress.ip_address(text)
        found = None if to.is_loopback or to in local else best(table, to)
        if found is None:
            what = "this machine's own" if to.is_loopback or to in local else "of no network that this machine reaches"
            raise TargetError(f"the address {to} is {what}", hint="ip route get " + text)
        device = _carrier(found.device, root)
        own = _addresses(found, table, local, inet6)
        if not own:
            raise TargetError(f"the interface {found.device} has no address to reach {to} from", hint="ip address")
        for interface in _stack(device, root):
            interfaces.setdefault(interface.name, interface)
        # A bridge asked with an address of its own, and its port would be given another lease.
        leased = [each for each in own if each.partition("/")[0] in clients and device == found.device]
        client = next((clients[each.partition("/")[0]] for each in leased), "")
        interfaces[device] = interfaces[device].joined(own, leased, client)
        gateway = "" if found.gateway is None else str(found.gateway)
        routes.setdefault(Route(to=str(to), gateway=gateway, device=device))
    return Network(interfaces=tuple(interfaces.values()), routes=tuple(routes))


def _addresses(
    way: TableEntry,
    table: Sequence[TableEntry],
    local: Sequence[ipaddress.IPv4Address],
    inet6: dict[str, tuple[str, ...]],
) -> tuple[str, ...]:
    """The interface's own addresses. /proc does not say whose an IPv4 address is: its network's route does."""
    if way.to.version == 6:
        return inet6.get(way.device, ())
    nets = [entry.to for entry in table if entry.device == way.device and entry.gateway is None and entry.to.prefixlen]
    found = {address: net.prefixlen for net in nets for address in local if address in net}
    if not found and len(local) == 1:
        found = {local[0]: 32}  # a point-to-point network, as clouds have them
    return tuple(f"{address}/{length}" for address, length in found.items())


def _folder(name: str, root: Path) -> Path:
    return root / "sys/class/net" / name


def _carrier(name: str, root: Path) -> str:
    """The interface itself; of a bridge the first port, which reaches the same network."""
    here = _folder(name, root)
    if not _is(here, "bridge"):
        return name
    ports = sorted(link.name.removeprefix("lower_") for link in here.glob("lower_*"))
    for port in ports:
        with contextlib.suppress(TargetError, UnsupportedError):
            _stack(port, root)
            return port
    raise UnsupportedError(f"the bridge {name} has no port that the capture kernel could use", hint="ip link")


def _is(folder: Path, kind: str) -> bool:
    return f"DEVTYPE={kind}" in (blockdev.attribute(folder / "uevent") or "").split()


def _stack(name: str, root: Path) -> list[Interface]:
    """The interface, behind all that it is made of."""
    here = _folder(name, root)
    if not here.exists():
        raise TargetError(f"there is no interface {name}", hint="ip link")
    mtu = int(blockdev.attribute(here / "mtu") or 1500)
    lower = tuple(sorted(link.name.removeprefix("lower_") for link in here.glob("lower_*")))
    if _is(here, "vlan"):
        below = [interface for each in lower for interface in _stack(_carrier(each, root), root)]
        number = _vlan_number(name, root)
        kind = Interface(name=name, kind=LinkKind.VLAN, lower=(_carrier(lower[0], root),), vlan=number, mtu=mtu)
        return [*below, kind]
    if _is(here, "bond"):
        below = [interface for each in lower for interface in _stack(each, root)]
        mode = (blockdev.attribute(here / "bonding/mode") or "active-backup").split()[0]
        mac = blockdev.attribute(here / "address") or ""
        return [*below, Interface(name=name, kind=LinkKind.BOND, mac=mac, lower=lower, bond_mode=mode, mtu=mtu)]
    if not (here / "device").exists():
        raise UnsupportedError(
            f"the interface {name} is neither a card nor a VLAN, bond or bridge of cards: the capture kernel could"
            " not set it up",
            hint="reach the target over another interface, or name another target in /etc/kdump.conf",
        )
    mac = blockdev.attribute(here / "bonding_slave/perm_hwaddr") or blockdev.attribute(here / "address") or ""
    return [Interface(name=name, kind=LinkKind.CARD, mac=mac.lower(), mtu=mtu)]


def _vlan_number(name: str, root: Path) -> int:
    for line in _text(root, f"vlan/{name}").splitlines():
        words = line.replace(":", " ").split()
        if "VID" in words:
            return int(words[words.index("VID") + 1])
    raise UnsupportedError(f"the number of the VLAN {name} cannot be found: /proc/net/vlan/{name} does not tell")


def _text(root: Path, name: str) -> str:
    """A file of /proc/net; what is not there has nothing to say."""
    try:
        return (root / "proc/net" / name).read_text(errors="replace")
    except OSError:
        return ""


def card_devices(name: str, root: Path = Path("/")) -> blockdev.BlockChain:
    """The card and all that it hangs on, as `blockdev.read_chain` for a disk."""
    return blockdev.chain_of(_folder(name, root) / "device", name, root)


def look_up(host: str) -> tuple[str, ...]:
    """The addresses of a name, in the order in which to try them. Raises TargetError, within 20 s."""
    with contextlib.suppress(ValueError):
        return (str(ipaddress.ip_address(host)),)
    found: list[str] = []
    reasons: list[str] = []

    def ask() -> None:
        try:
            entries = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
            found.extend(dict.fromkeys(str(entry[4][0]) for entry in entries))
        except OSError as error:
            reasons.append(error.strerror or str(error))

    # A resolver may take minutes when its servers are gone.
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(_NAME_SEC)
    if not found:
        reason = reasons[0] if reasons else f"no answer within {_NAME_SEC:.0f} s"
        raise TargetError(f"the name {host} has no address: {reason}", hint="write an address in /etc/kdump.conf")
    return tuple(found)
