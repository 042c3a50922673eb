# SPDX-License-Identifier: GPL-2.0-or-later
"""What an image for a target on the network holds: key, trust, library; one for a disk has none."""

from __future__ import annotations

import dataclasses
import stat
from pathlib import Path

import pytest
from plain_capture import settings

from kdumpd.config.capture import CaptureConfig, Fence, LocalDestination, NfsDestination, SshDestination
from kdumpd.config.network import Interface, LinkKind, Network
from kdumpd.errors import BuildError, KdumpError, TargetError
from kdumpd.image import contents, network, pyclosure
from kdumpd.image.supervisor import supervisor_files

DISK = LocalDestination(device="UUID=0", fstype="ext4", directory="/crash")
ACCOUNT = SshDestination(user="dumps", host="server", port=22, directory="/srv")
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI" + "A" * 42 + "="


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "etc/kdumpd/ssh"
    folder.mkdir(parents=True)
    (folder / "id_ed25519").write_text("the key\n")
    (folder / "known_hosts").write_text(f"server {KEY}\nother {KEY}\n[server]:2222 {KEY}\n")
    return tmp_path


def test_the_key_is_private_and_only_the_target_is_trusted(root: Path) -> None:
    tree = contents.Tree()
    network.add_trust(tree, settings(DISK, ACCOUNT), root)
    key, known = tree.entries["etc/kdumpd/ssh/id_ed25519"], tree.entries["etc/kdumpd/ssh/known_hosts"]
    assert (key.content, stat.S_IMODE(key.mode)) == (b"the key\n", 0o600)
    assert known.content.decode() == f"server {KEY}\n"
    assert [path for path, entry in tree.entries.items() if b"the key" in entry.content] == [
        "etc/kdumpd/ssh/id_ed25519"
    ]


def test_the_nodes_of_a_cluster_need_the_network(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is not known costs a note; a dump to a disk needs neither."""
    way = Network(interfaces=(Interface(name="eth0", kind=LinkKind.CARD, mac="52:54:00:00:00:00"),))
    monkeypatch.setattr(network, "read_network", lambda addresses, root: way)

    def look_up(name: str) -> tuple[str, ...]:
        if name == "lost":
            raise TargetError("lost has no address")
        return ("192.0.2.7", "2001:db8::7")

    monkeypatch.setattr(network, "look_up", look_up)
    fence = Fence(program="/usr/libexec/fence_kdump_send", nodes=("lost", "node2"))
    asked = dataclasses.replace(settings(DISK), fence=fence)
    notes: list[str] = []
    capture = network.with_network(asked, root, notes)
    assert capture.fence is not None
    assert capture.fence.addresses == ("192.0.2.7",)
    assert capture.network == way
    assert notes == ["the node lost will not be told of a crash: lost has no address"]
    assert capture.asked == asked
    assert CaptureConfig.from_json(capture.to_json(), "capture.json") == capture
    assert "fence yes\n" in supervisor_files(capture)["etc/kdumpd/supervisor"]
    assert "fence no\n" in supervisor_files(asked)["etc/kdumpd/supervisor"]


def test_a_disk_needs_neither_key_nor_network(root: Path) -> None:
    tree = contents.Tree()
    capture = network.with_network(settings(DISK), root, [])
    network.add_trust(tree, capture, root)
    network.add_tools(tree, capture, ())
    assert tree.entries == {}
    assert capture.network is None


def test_an_address_that_came_by_dhcp_needs_a_client() -> None:
    card = Interface(name="eth0", kind=LinkKind.CARD, addresses=("192.0.2.9/24",), leased=("192.0.2.9/24",))
    capture = dataclasses.replace(settings(DISK), network=Network(interfaces=(card,)))
    tree = contents.Tree()
    network.add_tools(tree, capture, ("ip", "udhcpc"))
    assert tree.entries["usr/bin/udhcpc"].content == b"/kdumpd/bin/busybox"
    assert tree.entries["kdumpd/bin/lease"].mode & 0o111
    tree = contents.Tree()
    network.add_tools(tree, capture, ("ip",))
    assert "kdumpd/bin/lease" not in tree.entries  # the address of now has to do


def test_what_is_missing_is_said_with_its_cure(root: Path) -> None:
    (root / "etc/kdumpd/ssh/known_hosts").write_text("")
    with pytest.raises(TargetError, match="no key for server") as caught:
        network.add_trust(contents.Tree(), settings(ACCOUNT), root)
    assert caught.value.hint == "kdumpctl propagate"
    (root / "etc/kdumpd/ssh/id_ed25519").unlink()
    with pytest.raises(BuildError, match="the key for") as missing:
        network.add_trust(contents.Tree(), settings(ACCOUNT), root)
    assert missing.value.hint == "kdumpctl propagate"


def test_one_target_out_of_reach_is_a_note_and_all_of_them_an_error(root: Path) -> None:
    far = NfsDestination(server="192.0.2.1", export="/e", directory="/")
    notes: list[str] = []
    capture = network.with_network(settings(far, DISK), root, notes)
    assert capture.network is None
    assert len(notes) == 1
    assert "192.0.2.1" in notes[0]
    with pytest.raises(KdumpError, match=r"192\.0\.2\.1"):
        network.with_network(settings(far), root, [])


def test_paramiko_is_inside_only_on_request() -> None:
    closure = pyclosure.find_closure()
    assert not [path for path in (*closure.sources, *closure.extensions) if "/paramiko/" in path]
    closure = pyclosure.find_closure(requested=("paramiko",))
    assert [path for path in closure.sources if path.endswith("/paramiko/transport.py")]
    assert [path for path in closure.extensions if "/cryptography/" in path]


def test_what_is_found_at_the_build_travels_as_json_and_is_no_change_of_settings() -> None:
    import dataclasses

    from kdumpd.config.network import Interface, LinkKind, Network

    capture = dataclasses.replace(
        settings(dataclasses.replace(ACCOUNT, addresses=("192.0.2.1",))),
        network=Network(interfaces=(Interface(name="eth0", kind=LinkKind.CARD),)),
    )
    assert CaptureConfig.from_json(capture.to_json(), "x") == capture
    assert capture.asked == settings(ACCOUNT)
