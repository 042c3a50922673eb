# SPDX-License-Identifier: GPL-2.0-or-later
"""The network as the capture kernel has to set it up: what carried packets to the targets when the image was built."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Iterable
from typing import Any


class LinkKind(enum.StrEnum):
    """What an interface is: a card, or made of others."""

    CARD = "card"
    VLAN = "vlan"
    BOND = "bond"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Interface:
    """One interface, named as on the host; in the capture kernel a card is found by its `mac`.

    `lower` are the interfaces it is made of. `vlan` is the VLAN's number, `bond_mode` the kernel's name of a bond's
    mode. `addresses` have their prefix length behind a slash; those of them that came by DHCP are `leased`, and asked
    for again, as the client `dhcp_client` (option 61, hexadecimal digits; "" for one called as its card).
    """

    name: str
    kind: LinkKind
    mac: str = ""
    lower: tuple[str, ...] = ()
    vlan: int = 0
    bond_mode: str = ""
    mtu: int = 1500
    addresses: tuple[str, ...] = ()
    leased: tuple[str, ...] = ()
    dhcp_client: str = ""

    def joined(self, addresses: Iterable[str], leased: Iterable[str], dhcp_client: str) -> Interface:
        """With these addresses besides, each once, and with the first client identifier that is known."""
        return dataclasses.replace(
            self,
            addresses=tuple(dict.fromkeys((*self.addresses, *addresses))),
            leased=tuple(dict.fromkeys((*self.leased, *leased))),
            dhcp_client=self.dhcp_client or dhcp_client,
        )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """The way to one address: over `gateway`, if that is not empty, through the interface `device`."""

    to: str
    gateway: str
    device: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """`interfaces` stand in the order in which they are set up: whatever is made of others behind these."""

    interfaces: tuple[Interface, ...] = ()
    routes: tuple[Route, ...] = ()

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> Network:
        """Reads what dataclasses.asdict and JSON made of it. Raises ValueError, TypeError or KeyError."""
        interfaces = tuple(
            Interface(
                name=_text(each["name"]),
                kind=LinkKind(each["kind"]),
                mac=_text(each["mac"]),
                lower=tuple(map(_text, each["lower"])),
                vlan=int(each["vlan"]),
                bond_mode=_text(each["bond_mode"]),
                mtu=int(each["mtu"]),
                addresses=tuple(map(_text, each["addresses"])),
                leased=tuple(map(_text, each["leased"])),
                dhcp_client=_text(each["dhcp_client"]),
            )
            for each in raw["interfaces"]
        )
        routes = tuple(
            Route(to=_text(each["to"]), gateway=_text(each["gateway"]), device=_text(each["device"]))
            for each in raw["routes"]
        )
        return cls(interfaces=interfaces, routes=routes)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not text")
    return value
