# SPDX-License-Identifier: GPL-2.0-or-later
"""Addresses that came by DHCP, asked for again in the capture kernel: what is asked, what is made of the answer, and
that without one nobody waits long."""

from __future__ import annotations

import ipaddress
import os
import subprocess
import time
from pathlib import Path

import pytest

from kdumpd.config.network import Interface, LinkKind, Network, Route
from kdumpd.targets import dhcp, network
from kdumpd.targets.dhcp import Lease

SCRIPT = Path(__file__).resolve().parents[3] / "initramfs/busybox/lease"
CARD = Interface(
    name="ens3", kind=LinkKind.CARD, mac="52:54:00:00:00:00", addresses=("10.0.2.15/24", "192.0.2.7/32"),
    leased=("10.0.2.15/24",), dhcp_client="ffb622",
)  # fmt: skip
ROUTES = (
    Route(to="10.0.2.2", gateway="", device="ens3"),
    Route(to="203.0.113.5", gateway="10.0.2.1", device="ens3"),
    Route(to="2a00::1", gateway="fe80::1", device="ens3"),
)


class Asked:
    """A server of leases, and all that is told to tools."""

    def __init__(self) -> None:
        self.answer = ""
        self.lines: list[str] = []

    def run(self, words: list[str]) -> subprocess.CompletedProcess[str]:
        self.lines.append(" ".join(words))
        return subprocess.CompletedProcess(words, 0, self.answer if words[0] == "udhcpc" else "", "")

    @property
    def questions(self) -> list[str]:
        return [line for line in self.lines if line.startswith("udhcpc")]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Asked:
    found = Asked()
    for module in (network, dhcp):
        monkeypatch.setattr(module, "run_tool", found.run)
    monkeypatch.setattr(dhcp.lease, "__defaults__", (dhcp.TRIES, tmp_path))
    card = tmp_path / "sys/eth1"
    (card / "device").mkdir(parents=True)
    (card / "address").write_text("52:54:00:00:00:00\n")
    (card / "carrier").write_text("1\n")
    return found


def bring_up(root: Path) -> None:
    network.bring_up(Network(interfaces=(CARD,), routes=ROUTES), lambda: None, 5, root / "sys")


def test_another_address_takes_the_place_of_the_old_one(asked: Asked, tmp_path: Path) -> None:
    asked.answer = "udhcpc: lease of 10.9.0.77 obtained\nlease 10.9.0.77/16 10.9.0.1\n"
    bring_up(tmp_path)
    assert asked.lines == [
        "ip link set dev eth1 up",
        "udhcpc -f -q -n -t 3 -T 1 -i eth1 -s /kdumpd/bin/lease -r 10.0.2.15 -C -x 0x3d:ffb622",
        "ip address replace 10.9.0.77/16 dev eth1",
        "ip address replace 192.0.2.7/32 dev eth1",
        *("ip -4 route replace 10.9.0.1/32 dev eth1", "ip -4 route replace 10.0.2.2/32 via 10.9.0.1 dev eth1"),
        *("ip -4 route replace 10.9.0.1/32 dev eth1", "ip -4 route replace 203.0.113.5/32 via 10.9.0.1 dev eth1"),
        *("ip -6 route replace fe80::1/128 dev eth1", "ip -6 route replace 2a00::1/128 via fe80::1 dev eth1"),
    ]
    bring_up(tmp_path)
    assert len(asked.questions) == 1  # the answer holds for the next target


def test_without_an_answer_there_is_the_old_one(asked: Asked, tmp_path: Path) -> None:
    bring_up(tmp_path)
    bring_up(tmp_path)
    assert len(asked.questions) == 1  # nobody waits twice in a row
    assert "ip address replace 10.0.2.15/24 dev eth1" in asked.lines
    assert "ip -4 route replace 203.0.113.5/32 via 10.0.2.1 dev eth1" in asked.lines
    kept = tmp_path / "lease-eth1"
    os.utime(kept, (time.time() - 60, time.time() - 60))
    bring_up(tmp_path)
    assert len(asked.questions) == 2


def test_the_way_to_a_server_follows_from_the_lease() -> None:
    plain = Lease(ipaddress.IPv4Interface("10.0.2.15/24"), "10.0.2.3")
    assert [plain.gateway(route) for route in ROUTES] == ["", "10.0.2.1", "fe80::1"]
    moved = Lease(ipaddress.IPv4Interface("203.0.113.9/24"))
    assert [moved.gateway(route) for route in ROUTES] == ["", "", "fe80::1"]
    cloud = Lease(ipaddress.IPv4Interface("10.128.0.3/32"), "10.128.0.1")
    assert [cloud.gateway(route) for route in ROUTES] == ["10.128.0.1", "10.128.0.1", "fe80::1"]


@pytest.mark.parametrize(
    "text", ["", "lease\n", "lease x/24 10.0.0.1\n", "lease 10.0.0.1/99\n", "lease 10.0.0.1/8 y\n"]
)
def test_what_is_no_answer(text: str) -> None:
    assert dhcp.parse(text) is None


def test_what_udhcpc_calls_tells_the_collector(tmp_path: Path) -> None:
    script, kmsg = tmp_path / "lease", tmp_path / "kmsg"
    text = SCRIPT.read_text()
    assert "/dev/kmsg" in text
    script.write_text(text.replace("/dev/kmsg", str(kmsg)))

    def said(event: str, **given: str) -> str:
        words = ["/bin/busybox", "sh", str(script), event]
        return subprocess.run(words, env=given, capture_output=True, text=True, check=True).stdout

    assert said("deconfig", interface="eth1") == ""
    line = said("bound", interface="eth1", ip="10.0.2.15", mask="24", router="10.0.2.2 10.0.2.3")
    assert dhcp.parse(line) == Lease(ipaddress.IPv4Interface("10.0.2.15/24"), "10.0.2.2")
    assert kmsg.read_text() == "<7>kdumpd: eth1 has a lease of 10.0.2.15/24 from a server\n"
    assert dhcp.parse(said("bound", interface="eth1", ip="10.0.2.15")) == Lease(ipaddress.IPv4Interface("10.0.2.15/32"))
