# SPDX-License-Identifier: GPL-2.0-or-later
"""Captures over the network: to an OpenSSH server, which runs here, through QEMU's own network."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from lab import proof, tiny
from lab.sshd import Sshd, running

_CARD = ("-netdev", "user,id=net0", "-device", "virtio-net-pci,netdev=net0,id=card0")
_SERVER = "10.0.2.2"  # this host, as a guest sees it
_SETUP = """
await /sys/class/net/eth0
ip link set eth0 up
ip address add 10.0.2.15/24 dev eth0
ip route add default via 10.0.2.2
"""


def trust(server: Sshd) -> Callable[[Path], None]:
    """Puts the key and the pinned host key where `kdumpctl propagate` would."""

    def prepare(root: Path) -> None:
        folder = root / "etc/kdumpd/ssh"
        folder.mkdir(parents=True)
        shutil.copy(server.key, folder / "id_ed25519")
        shutil.copy(server.pin(server.port, name=_SERVER), folder / "known_hosts")

    return prepare


def test_ssh(scratch: Path) -> None:
    with running(scratch / "sshd") as server:
        outcome = tiny.crash(
            f"ssh root@{_SERVER}:{server.port}\npath {scratch}/out\n",
            scratch,
            setup=_SETUP,
            modules=["virtio_net"],
            words=_CARD,
            prepare=trust(server),
            crashkernel="192M",
        )
    assert "SAVED root@10.0.2.2:" in outcome.capture
    folder = tiny.only_crash(scratch / "out")
    proof.complete(folder)
    proof.marker(folder, outcome.marker)
    proof.verified(folder)
    proof.accepted(folder)
