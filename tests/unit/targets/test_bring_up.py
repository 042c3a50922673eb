# SPDX-License-Identifier: GPL-2.0-or-later
"""Setting the network up in the capture kernel: what ip(8) is told, by the names that cards have there."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from kdumpd.config.network import Interface, LinkKind, Network, Route
from kdumpd.errors import TargetError
from kdumpd.targets import network


@pytest.fixture
def sysfs(tmp_path: Path) -> Path:
    """Two cards with other names than on the host."""
    (tmp_path / "bonding_masters").write_text("")
    for name, mac in (("lo", "00:00:00:00:00:00"), ("eth0", "52:54:00:00:00:01"), ("eth1", "52:54:00:00:00:00")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "address").write_text(mac + "\n")
        (tmp_path / name / "carrier").write_text("1\n")
        if name != "lo":
            (tmp_path / name / "device").mkdir()
    return tmp_path


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    lines: list[str] = []

    def run(words: list[str]) -> subprocess.CompletedProcess[str]:
        lines.append(" ".join(words[1:]))
        return subprocess.CompletedProcess(words, 0, "", "")

    monkeypatch.setattr(network, "run_tool", run)
    monkeypatch.setattr(network, "_IPV6", tmp_path / "ipv6")
    (tmp_path / "ipv6/eth1").mkdir(parents=True)
    return lines


def test_a_card_is_found_by_its_address(sysfs: Path, told: list[str]) -> None:
    card = Interface(name="ens3", kind=LinkKind.CARD, mac="52:54:00:00:00:00", mtu=9000, addresses=("10.0.2.15/24",))
    routes = (
        Route(to="10.0.2.2", gateway="", device="ens3"),
        Route(to="203.0.113.5", gateway="10.0.2.1", device="ens3"),
        Route(to="2a00::1", gateway="fe80::1", device="ens3"),
    )
    network.bring_up(Network(interfaces=(card,), routes=routes), lambda: None, 5, sysfs)
    assert (sysfs / "ipv6/eth1/accept_dad").read_text() == "0\n"
    assert told == [
        "link set dev eth1 mtu 9000",
        "link set dev eth1 up",
        "address replace 10.0.2.15/24 dev eth1",
        "-4 route replace 10.0.2.2/32 dev eth1",
        "-4 route replace 10.0.2.1/32 dev eth1",
        "-4 route replace 203.0.113.5/32 via 10.0.2.1 dev eth1",
        "-6 route replace fe80::1/128 dev eth1",
        "-6 route replace 2a00::1/128 via fe80::1 dev eth1",
    ]


def test_busybox_knows_these_words(tmp_path: Path) -> None:
    """Its ip(8) has a language of its own, and complains of what it does not know; in a network namespace."""
    (tmp_path / "ip").symlink_to("/bin/busybox")
    lines = (
        "link set dev lo mtu 9000",
        "link set dev lo up",
        "address replace 10.0.2.15/24 dev lo",
        "address replace 10.0.2.15/24 dev lo",
        "address replace 2001:db8::15/64 dev lo",
        "-4 route replace 10.0.2.1/32 dev lo",
        "-4 route replace 203.0.113.5/32 via 10.0.2.1 dev lo",
        "-6 route replace fe80::1/128 dev lo",
    )
    script = "".join(f'"$1" {line} || exit\n' for line in lines)
    done = subprocess.run(
        ["unshare", "-n", "sh", "-c", script, "sh", str(tmp_path / "ip")], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_vlan_on_a_bond(sysfs: Path, told: list[str]) -> None:
    options = sysfs / "bond0/bonding"
    options.mkdir(parents=True)
    (sysfs / "bond0.7").mkdir()
    (sysfs / "bond0.7/carrier").write_text("1")
    cards = [Interface(name=f"ens{n}", kind=LinkKind.CARD, mac=f"52:54:00:00:00:0{n}") for n in range(2)]
    bond = Interface(
        name="bond0", kind=LinkKind.BOND, mac="52:54:00:00:00:00", lower=("ens0", "ens1"), bond_mode="active-backup"
    )
    # As sysfs would have made it at the name's writing.
    (sysfs / "bond0").rename(sysfs / "later")
    vlan = Interface(name="bond0.8", kind=LinkKind.VLAN, lower=("bond0",), vlan=8)
    with pytest.raises(TargetError, match="the bond bond0 cannot be made"):
        network.bring_up(Network(interfaces=(*cards, bond, vlan)), lambda: None, 5, sysfs)
    assert (sysfs / "bonding_masters").read_text() == "+bond0\n"
    # The kernel makes a bond0 when the driver is loaded: that one has no cards yet.
    (sysfs / "later").rename(sysfs / "bond0")
    told.clear()
    network.bring_up(Network(interfaces=(*cards, bond, vlan)), lambda: None, 5, sysfs)
    assert (options / "mode").read_text() == "active-backup\n"
    assert told[-2:] == ["link add link bond0 name bond0.8 type vlan id 8", "link set dev bond0.8 up"]
    assert {"link set dev eth0 down", "link set dev eth1 down"} <= set(told)

    # A second target finds it: the cards have the bond's address now, and are not taken down.
    (options / "slaves").write_text("eth1 eth0\n")
    for name, mac in (("eth0", "52:54:00:00:00:01"), ("eth1", "52:54:00:00:00:00")):
        (sysfs / name / "bonding_slave").mkdir()
        (sysfs / name / "bonding_slave/perm_hwaddr").write_text(f"{mac}\n")
        (sysfs / name / "address").write_text("52:54:00:00:00:00\n")
    told.clear()
    network.bring_up(Network(interfaces=(*cards, bond, vlan)), lambda: None, 5, sysfs)
    assert not [line for line in told if line.endswith("down")]


def test_what_does_not_come_up_is_named_in_time(sysfs: Path, told: list[str]) -> None:
    card = Interface(name="ens3", kind=LinkKind.CARD, mac="52:54:00:00:00:00", addresses=("10.0.2.15/24",))
    (sysfs / "eth1/carrier").write_text("0")
    with pytest.raises(TargetError, match="eth1 has no link"):
        network.bring_up(Network(interfaces=(card,)), lambda: None, 0.3, sysfs)
    missing = Interface(name="ens9", kind=LinkKind.CARD, mac="52:54:00:00:00:99")
    with pytest.raises(TargetError, match=r"52:54:00:00:00:99 \(ens9\) did not appear"):
        network.bring_up(Network(interfaces=(missing,)), lambda: None, 0.3, sysfs)
