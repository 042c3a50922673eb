# SPDX-License-Identifier: GPL-2.0-or-later
"""Which interface leads to a server, and what it is made of."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from kdumpd.config.network import LinkKind, Network, Route
from kdumpd.errors import TargetError, UnsupportedError
from kdumpd.host.network import look_up, parse_inet6, parse_local, parse_route, parse_route6, read_network

ROUTE = """Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT
ens3\t00000000\t0202000A\t0003\t0\t0\t100\t00000000\t0\t0\t0
ens4\t00000000\t0100A8C0\t0003\t0\t0\t50\t00000000\t0\t0\t0
ens3\t0002000A\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0
ens4\t0000A8C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0
bond0.7\t000710AC\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0
br0\t00641FAC\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0
tun0\t0000080A\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0
ens3\t0A0A0A0A\t00000000\t0201\t0\t0\t0\tFFFFFFFF\t0\t0\t0
"""
TRIE = """Main:
  +-- 0.0.0.0/0 3 0 5
     |-- 10.0.2.0
        /24 link UNICAST
     |-- 10.0.2.15
        /32 host LOCAL
     |-- 127.0.0.1
        /32 host LOCAL
     |-- 192.168.0.9
        /32 host LOCAL
     |-- 172.16.7.3
        /32 host LOCAL
     |-- 172.31.100.4
        /32 host LOCAL
     |-- 10.8.0.6
        /32 host LOCAL
Local:
     |-- 10.0.2.15
        /32 host LOCAL
     |-- 10.0.2.255
        /32 link BROADCAST
"""
ROUTE6 = """\
20010db8000000000000000000000000 40 00000000000000000000000000000000 00 00000000000000000000000000000000 00000100 00000001 00000000 00000001     ens3
fe800000000000000000000000000000 40 00000000000000000000000000000000 00 00000000000000000000000000000000 00000100 00000001 00000000 00000001     ens3
00000000000000000000000000000000 00 00000000000000000000000000000000 00 fe800000000000000000000000000001 00000400 00000001 00000000 00000003     ens3
00000000000000000000000000000000 00 00000000000000000000000000000000 00 00000000000000000000000000000000 ffffffff 00000001 00000000 00200200       lo
"""  # noqa: E501
INET6 = """\
20010db8000000000000000000000015 02 40 00 80     ens3
20010db80000000000000000deadbeef 02 40 00 01     ens3
fe80000000000000505400fffe123456 02 40 20 80     ens3
00000000000000000000000000000001 01 80 10 80       lo
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    net = tmp_path / "proc/net"
    (net / "vlan").mkdir(parents=True)
    for name, text in (("route", ROUTE), ("fib_trie", TRIE), ("ipv6_route", ROUTE6), ("if_inet6", INET6)):
        (net / name).write_text(text)
    (net / "vlan/bond0.7").write_text("bond0.7  VID: 7\t REORDER_HDR: 1  dev->priv_flags: 1021\n")

    def interface(name: str, *, mac: str, kind: str = "", card: bool = False, lower: tuple[str, ...] = ()) -> Path:
        folder = tmp_path / "sys/class/net" / name
        folder.mkdir(parents=True)
        (folder / "address").write_text(mac + "\n")
        (folder / "mtu").write_text("9000\n" if name == "ens4" else "1500\n")
        (folder / "uevent").write_text((f"DEVTYPE={kind}\n" if kind else "") + f"INTERFACE={name}\n")
        if card:
            (folder / "device").mkdir()
        for each in lower:
            (folder / f"lower_{each}").symlink_to(f"../{each}")
        return folder

    for number, name in enumerate(("ens3", "ens4", "ens5", "ens6", "ens7")):
        interface(name, mac=f"52:54:00:00:00:{number:02X}", card=True)
    bond = interface("bond0", mac="52:54:00:00:00:02", kind="bond", lower=("ens5", "ens6"))
    (bond / "bonding").mkdir()
    (bond / "bonding/mode").write_text("802.3ad 4\n")
    interface("bond0.7", mac="52:54:00:00:00:02", kind="vlan", lower=("bond0",))
    interface("br0", mac="aa:00:00:00:00:01", kind="bridge", lower=("ens7", "vnet0"))
    interface("vnet0", mac="fe:00:00:00:00:01")
    interface("tun0", mac="")
    return tmp_path


def test_a_neighbour(root: Path) -> None:
    found = read_network(["10.0.2.2"], root)
    (card,) = found.interfaces
    assert (card.name, card.kind, card.mac, card.mtu) == ("ens3", LinkKind.CARD, "52:54:00:00:00:00", 1500)
    assert card.addresses == ("10.0.2.15/24",)
    assert found.routes == (Route(to="10.0.2.2", gateway="", device="ens3"),)


def test_behind_the_gateway_with_the_lower_metric(root: Path) -> None:
    found = read_network(["203.0.113.5"], root)
    assert [(each.name, each.mtu, each.addresses) for each in found.interfaces] == [("ens4", 9000, ("192.168.0.9/24",))]
    assert found.routes == (Route(to="203.0.113.5", gateway="192.168.0.1", device="ens4"),)


def test_a_vlan_on_a_bond(root: Path) -> None:
    found = read_network(["172.16.7.20"], root)
    assert [each.name for each in found.interfaces] == ["ens5", "ens6", "bond0", "bond0.7"]
    bond, vlan = found.interfaces[2:]
    assert (bond.kind, bond.bond_mode, bond.lower) == (LinkKind.BOND, "802.3ad", ("ens5", "ens6"))
    assert (vlan.kind, vlan.vlan, vlan.lower, vlan.addresses) == (LinkKind.VLAN, 7, ("bond0",), ("172.16.7.3/24",))


def test_a_bridge_is_reached_through_its_port(root: Path) -> None:
    found = read_network(["172.31.100.9"], root)
    assert [(each.name, each.addresses) for each in found.interfaces] == [("ens7", ("172.31.100.4/24",))]
    assert found.routes[0].device == "ens7"


def test_ipv6(root: Path) -> None:
    found = read_network(["2001:db8::99", "2a00::1"], root)
    assert [(each.name, each.addresses) for each in found.interfaces] == [("ens3", ("2001:db8::15/64",))]
    assert found.routes == (
        Route(to="2001:db8::99", gateway="", device="ens3"),
        Route(to="2a00::1", gateway="fe80::1", device="ens3"),
    )


def test_what_the_capture_kernel_could_not_set_up(root: Path) -> None:
    with pytest.raises(UnsupportedError, match="tun0 is neither a card"):
        read_network(["10.8.1.1"], root)


@pytest.mark.parametrize("address", ["127.0.0.1", "10.0.2.15", "::1"])
def test_the_machine_itself_is_no_target(address: str, root: Path) -> None:
    with pytest.raises(TargetError, match="this machine's own"):
        read_network([address], root)


def test_no_way(root: Path) -> None:
    (root / "proc/net/ipv6_route").unlink()
    with pytest.raises(TargetError, match="of no network that this machine reaches"):
        read_network(["2001:db8::99"], root)


def test_an_address_that_came_by_dhcp_is_marked(root: Path) -> None:
    leases = root / "run/systemd/netif/leases"
    leases.mkdir(parents=True)
    for number, address in enumerate(("10.0.2.15", "172.31.100.4", "172.16.7.3")):
        (leases / str(number)).write_text(f"ADDRESS={address}\nCLIENTID=ff0{number}\n")
    marked = {to: read_network([to], root).interfaces[-1] for to in ("10.0.2.2", "172.16.7.20", "203.0.113.5")}
    assert [(each.leased, each.dhcp_client) for each in marked.values()] == [
        (("10.0.2.15/24",), "ff00"),
        (("172.16.7.3/24",), "ff02"),
        ((), ""),
    ]
    # A bridge had it, with an address of its own.
    assert read_network(["172.31.100.9"], root).interfaces[0].leased == ()
    found = read_network(["10.0.2.2"], root)
    assert Network.from_dict(json.loads(json.dumps(dataclasses.asdict(found)))) == found


def test_it_travels_as_json(root: Path) -> None:
    found = read_network(["172.16.7.20", "2a00::1"], root)
    assert Network.from_dict(json.loads(json.dumps(dataclasses.asdict(found)))) == found


def test_odd_lines_are_left_out() -> None:
    assert parse_route("header\nx y\n") == ()
    assert parse_route6("x\n") == ()
    assert parse_inet6("x\n") == {}
    assert parse_local("nothing\n") == ()


def test_names() -> None:
    assert look_up("192.0.2.1") == ("192.0.2.1",)
    assert "127.0.0.1" in look_up("localhost")
    with pytest.raises(TargetError, match=r"no-such-host\.invalid has no address"):
        look_up("no-such-host.invalid")
