# SPDX-License-Identifier: GPL-2.0-or-later
"""Captures over the network: to an OpenSSH server, which runs here, through QEMU's own network, and to a kernel's NFS
server in another guest; then with all that goes wrong on the way."""

from __future__ import annotations

import shutil
import socket
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from lab import image, listing, nfsd, proof, tiny
from lab.aptroot import AptRoot, run
from lab.qemu import Machine
from lab.sshd import CARD, HOST, WAY, Sshd, public, running

# Both the cable to the NFS server and QEMU's network; which card comes first is the order on the command line.
_BOTH = nfsd.SETUP + WAY.replace("eth0", "eth1")
_WRITING = r"\d/7 writing what is needed first +\d+ %"
_FAILED = r"CAPTURE FAILED on"
_DEADLINE_S = 300
_SPARE_S = 30 + 45  # what may be added, and what emulation takes to boot and to end


def trust(*servers: Sshd, pinned: Sshd | None = None) -> Callable[[Path], None]:
    """Puts the key and the pinned host keys where `kdumpctl propagate` would; with `pinned` it is that server's key
    that is pinned for all of them."""

    def prepare(root: Path) -> None:
        folder = root / "etc/kdumpd/ssh"
        folder.mkdir(parents=True)
        shutil.copy(servers[0].key, folder / "id_ed25519")
        keys = [(server.port, public((pinned or server).host_key)) for server in servers]
        (folder / "known_hosts").write_text("".join(f"[{HOST}]:{port} {key}\n" for port, key in keys))

    return prepare


def shown(folder: Path, outcome: tiny.Outcome) -> None:
    """All that a complete crash folder has to show."""
    proof.complete(folder)
    proof.marker(folder, outcome.marker)
    proof.verified(folder)
    proof.accepted(folder)


def in_time(outcome: tiny.Outcome) -> None:
    assert outcome.captured_sec < _DEADLINE_S + _SPARE_S, outcome.capture[-3000:]
    assert "reboot: Restarting system" in outcome.capture


def leased(address: str) -> Callable[[Path], None]:
    """As if systemd-networkd had got the address by DHCP."""

    def prepare(root: Path) -> None:
        path = root / "run/systemd/netif/leases/2"
        path.parent.mkdir(parents=True)
        path.write_text(f"ADDRESS={address}\nCLIENTID=ffb6220feb00020000ab11d2\n")

    return prepare


def with_fence_agents(scratch: Path) -> Callable[[Path], None]:
    """Installs fence_kdump_send(8) of Debian's fence-agents in the machine."""

    def prepare(root: Path) -> None:
        package = AptRoot(image.SUITE).download("fence-agents", scratch)
        run(["dpkg-deb", "-x", str(package), str(scratch / "fence")], timeout=60)
        shutil.copytree(scratch / "fence/usr/libexec", root / "usr/libexec")

    return prepare


def test_ssh(scratch: Path) -> None:
    """And a node of its cluster is told. The machine's address came by DHCP, and QEMU's server has another one now."""

    def prepare(root: Path) -> None:
        for step in (trust(server), with_fence_agents(scratch), leased("10.0.2.77")):
            step(root)

    with running(scratch / "sshd") as server, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as node:
        node.bind(("127.0.0.1", 0))
        node.settimeout(5)
        outcome = tiny.crash(
            f"ssh root@{HOST}:{server.port}\npath {scratch}/out\n"
            f"fence_kdump_nodes {HOST}\nfence_kdump_args -p {node.getsockname()[1]} -i 1\n",
            scratch,
            setup=WAY.replace("10.0.2.15", "10.0.2.77"),
            modules=["virtio_net"],
            words=CARD,
            prepare=prepare,
            crashkernel="192M",
        )
        messages = [node.recv(100) for _ in range(5)]
    # The magic number and the version (fence-agents: agents/kdump/message.h).
    assert set(messages) == {struct.pack("=II", 0x1B302A40, 1)}
    assert "SAVED root@10.0.2.2:" in outcome.capture
    folder = tiny.only_crash(scratch / "out")
    shown(folder, outcome)
    assert "kdumpd: eth0 has a lease of 10.0.2.15/24 from 10.0.2.2" in (folder / "kexec-dmesg.log").read_text()


@pytest.mark.xdist_group("nfs")
def test_nfs(scratch: Path) -> None:
    """Version 3 from a server that has no other, after an export whose files are lost (ESTALE). Then
    version 4, after an SSH server with another host key, an export that is too small (ENOSPC at fsync) and one with a
    quota (EDQUOT). The address for version 3 came by DHCP, and nobody answers any more."""

    def during(guest: Machine) -> None:
        guest.console.wait_for(_WRITING, 120)
        server.order("lose lost")

    sizes = {"three": 128, "lost": 128, "small": 8, "quota": 128, "four": 128}
    exports = {name: f"nfs {nfsd.ADDRESS}:/srv/{name}\n" for name in sizes}
    config = f"path /crash\ndeadline_total {_DEADLINE_S}\n"
    with (
        nfsd.running(scratch, sizes, quotas_mib={"quota": 8}) as server,
        running(scratch / "a") as sshd,
        running(scratch / "b") as other,
    ):
        server.order("only_v3")
        third = tiny.crash(
            exports["lost"] + exports["three"] + config, scratch, setup=nfsd.SETUP, modules=nfsd.MODULES,
            words=server.words, prepare=leased(nfsd.CLIENT), during=during, name="v3",
        )  # fmt: skip
        server.order("all_versions")
        fourth = tiny.crash(
            f"ssh root@{HOST}:{sshd.port}\n" + exports["small"] + exports["quota"] + exports["four"] + config, scratch,
            setup=_BOTH, modules=nfsd.MODULES, words=(*server.words, *CARD), prepare=trust(sshd, pinned=other),
            name="v4",
        )  # fmt: skip
    roots = {name: scratch / name for name in sizes}
    folders = {name: listing.take(server.disks[name], "/crash", root) for name, root in roots.items()}
    for name, outcome, reasons in (
        ("three", third, ["Stale file handle"]),
        ("four", fourth, ["host key", "No space left on device", "Disk quota exceeded"]),
    ):
        in_time(outcome)
        shown(tiny.complete_crash(folders[name]), outcome)
        said = " ".join(outcome.capture.split())
        assert all(reason in said for reason in reasons), said[-3000:]
    results = {name: [crash["result"] for crash in listing.listed(roots[name])] for name in ("small", "quota", "lost")}
    for name in ("small", "quota"):
        assert results[name][-1] == "incomplete"  # the log may have come before, while SSH did not answer
    assert not any("complete" in found for found in results.values())


@pytest.mark.xdist_group("nfs")
def test_servers_and_links_that_fail(scratch: Path) -> None:
    """A link that is down before the crash, an NFS server that freezes, a link that goes down and an SSH server that is
    killed while they are written to: in the end there is the disk."""
    out = f"{scratch}/out"
    uuid = tiny.ext4(scratch / "disk.raw", mib=128)

    def before(guest: Machine) -> None:
        guest.qmp("set_link", name="card0", up=False)

    def during(guest: Machine) -> None:
        at = 0

        def wait(pattern: str) -> None:
            nonlocal at
            at = guest.console.wait_for(pattern, 120, after=at).end()

        wait(rf"reaching [^\n]*{nfsd.ADDRESS}")
        guest.qmp("set_link", name="card0", up=True)
        wait(_WRITING)
        server.machine.qmp("stop")
        wait(rf"reaching [^\n]*:{second.port}")
        wait(_WRITING)
        guest.qmp("set_link", name="card0", up=False)
        wait(rf"reaching [^\n]*:{third.port}")
        guest.qmp("set_link", name="card0", up=True)
        wait(_WRITING)
        third.stop()
        server.machine.qmp("cont")

    with (
        nfsd.running(scratch, {"frozen": 128}) as server,
        running(scratch / "sshd-1") as first,
        running(scratch / "sshd-2") as second,
        running(scratch / "sshd-3") as third,
    ):
        for one in (second, third):
            shutil.copy(first.folder / "authorized_keys", one.folder / "authorized_keys")
        lines = [f"ssh root@{HOST}:{one.port}\n" for one in (first, second, third)]
        lines.insert(1, f"nfs {nfsd.ADDRESS}:/srv/frozen\n")
        deadlines = f"deadline_total {_DEADLINE_S}\ndeadline_target 30\ndeadline_network 5\ndeadline_stall 45\n"
        outcome = tiny.crash(
            f"{''.join(lines)}ext4 UUID={uuid}\npath {out}\n{deadlines}", scratch,
            disks=[tiny.Disk(path=scratch / "disk.raw")], setup=_BOTH, modules=nfsd.MODULES,
            words=(*server.words, *CARD), prepare=trust(first, second, third), before=before, during=during,
            timeout=_DEADLINE_S + _SPARE_S,
        )  # fmt: skip
    in_time(outcome)
    folder = listing.take(scratch / "disk.raw", out, scratch / "disk")
    assert listing.listed(scratch / "disk", out)[-1]["result"] == "complete"
    shown(tiny.complete_crash(folder), outcome)
    listing.take(server.disks["frozen"], out, scratch / "frozen")
    assert all(crash["result"] != "complete" for crash in listing.listed(scratch / "frozen", out))
    shutil.copytree(out, scratch / "host" / out.lstrip("/"))
    results = [crash["result"] for crash in listing.listed(scratch / "host", out)]
    assert results
    assert "complete" not in results


@pytest.mark.matrix
@pytest.mark.xdist_group("nfs")
def test_ipv6_in_a_vlan_on_a_bond(scratch: Path) -> None:
    """All of it has to be made anew in the capture kernel: eth0 in bond0, bond0.7, and its address of IPv6."""
    server_side = """
ip link add link eth0 name eth0.7 type vlan id 7
echo 0 >/proc/sys/net/ipv6/conf/eth0.7/accept_dad
ip link set eth0.7 up
ip -6 address add fd00:6b::1/64 dev eth0.7
"""
    client_side = """
await /sys/class/net/eth0
await /sys/class/net/bond0
echo active-backup >/sys/class/net/bond0/bonding/mode
echo 100 >/sys/class/net/bond0/bonding/miimon
echo +eth0 >/sys/class/net/bond0/bonding/slaves
ip link set bond0 up
ip link add link bond0 name bond0.7 type vlan id 7
echo 0 >/proc/sys/net/ipv6/conf/bond0.7/accept_dad
ip link set bond0.7 up
ip -6 address add fd00:6b::2/64 dev bond0.7
"""
    with nfsd.running(scratch, {"six": 128}, setup=server_side, modules=["8021q"]) as server:
        outcome = tiny.crash(
            "nfs [fd00:6b::1]:/srv/six\npath /crash\n", scratch, setup=client_side,
            modules=["virtio_net", "bonding", "8021q"], words=server.words,
        )  # fmt: skip
    assert "SAVED" in outcome.capture, outcome.capture[-3000:]
    shown(tiny.only_crash(listing.take(server.disks["six"], "/crash", scratch / "six")), outcome)
