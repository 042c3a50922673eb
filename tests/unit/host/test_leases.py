# SPDX-License-Identifier: GPL-2.0-or-later
"""Which addresses came by DHCP: files as clients write them, and the kernel of a network namespace."""

from __future__ import annotations

import ipaddress
import subprocess
import sys
from pathlib import Path

from kdumpd.host.leases import parse_lease, read_leased

NETWORKD = """# This is private data. Do not parse.
ADDRESS=10.0.2.15
NETMASK=255.255.255.0
ROUTER=10.0.2.2
SERVER_ADDRESS=10.0.2.2
LIFETIME=86400
CLIENTID=ffb6220feb00020000ab11d2
"""
MANAGER = "# This is private data. Do not parse.\nADDRESS=192.168.7.4\nCLIENTID=01525400123456\n"
DHCLIENT = """lease {
  interface "eth0";
  fixed-address 192.0.2.9;
  option routers 192.0.2.1;
}
lease {
  fixed-address 192.0.2.10;
}
"""
HERE = "from kdumpd.host.leases import read_leased; print(*sorted(map(str, read_leased())))"


def test_each_client_has_a_file_of_its_own(tmp_path: Path) -> None:
    assert read_leased(tmp_path) == {}
    for name, text in {
        "run/systemd/netif/leases/2": NETWORKD,
        "var/lib/NetworkManager/internal-0d3c-eth1.lease": MANAGER,
        "var/lib/dhcp/dhclient.eth2.leases": DHCLIENT,
    }.items():
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text(text)
    assert {str(address): client for address, client in read_leased(tmp_path).items()} == {
        "10.0.2.15": "ffb6220feb00020000ab11d2",
        "192.168.7.4": "01525400123456",
        "192.0.2.9": "",
        "192.0.2.10": "",
    }


def test_nonsense_is_no_lease() -> None:
    assert parse_lease("ADDRESS=10.0.0.300\nADDRESS=\nSERVER_ADDRESS=10.0.0.1\nCLIENTID=zz\n") == {}
    assert parse_lease("ADDRESS=10.0.0.3\nCLIENTID=zz\n") == {ipaddress.IPv4Address("10.0.0.3"): ""}


def test_the_kernel_knows_addresses_with_an_end() -> None:
    script = (
        "ip link set lo up && ip address add 198.51.100.4/24 dev lo valid_lft 600 preferred_lft 600 &&"
        ' ip address add 198.51.100.5/24 dev lo && exec "$0" -c "$1"'
    )
    done = subprocess.run(
        ["unshare", "-n", "sh", "-c", script, sys.executable, HERE],
        capture_output=True, text=True, check=False, cwd=Path(__file__).resolve().parents[3],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = done.stdout.split()
    assert "198.51.100.4" in found
    assert "198.51.100.5" not in found
