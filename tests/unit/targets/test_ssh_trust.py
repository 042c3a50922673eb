# SPDX-License-Identifier: GPL-2.0-or-later
"""Whom a capture talks to: only the server whose key is pinned, and every other one is left at once."""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab.sshd import NAME, Sshd, Wire, make_key, public, running
from places import destination

from kdumpd.config.capture import SshDestination
from kdumpd.errors import TargetError
from kdumpd.targets import known_hosts, ssh
from kdumpd.targets.known_hosts import keys_of
from kdumpd.targets.link import RefusedError
from kdumpd.targets.ssh import SshServer


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    with running(tmp_path_factory.mktemp("sshd") / "one") as found:
        yield found


def open_and_leave(wanted: SshDestination, **arguments: float) -> None:
    with SshServer(wanted, **arguments).open_crash("c", lambda: None):
        pass


def hashed(name: str) -> str:
    salt = os.urandom(20)
    words = (base64.b64encode(part).decode() for part in (salt, hmac.new(salt, name.encode(), hashlib.sha1).digest()))
    return "|1|" + "|".join(words)


# What a known_hosts file says, in words of "{key}" (the server's), "{other}" and "{rsa}", and "{at}": name and port.
HOSTILE = {
    "another key": "{at} {other}",
    "a key of another kind only": "{at} {rsa}",
    "another name": "[other.test]:{port} {key}",
    "the address, not the name": "[127.0.0.1]:{port} {key}",
    "another port": f"[{NAME}]:1 {{key}}",
    "the name without its port": f"{NAME} {{key}}",
    "another name, hashed": "{hashed_other} {key}",
    "an authority instead of a key": "@cert-authority {at} {key}",
    "revoked": "{at} {key}\n@revoked * {key}",
    "not for this name": "*,!{at} {key}",
    "a damaged key": "{at} ssh-ed25519 AAAA{key}",
    "nothing": "# {at} {key}",
}


@pytest.mark.parametrize("lines", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_server_that_is_not_the_pinned_one(lines: str, server: Sshd, tmp_path: Path) -> None:
    """One connection at most, none of our key is shown to it, and nothing is tried again."""
    wire = Wire(server.port)
    at = f"[{NAME}]:{wire.port}"
    text = lines.format(
        at=at,
        port=wire.port,
        key=public(server.host_key),
        other=public(make_key(tmp_path / "other")),
        rsa=public(make_key(tmp_path / "rsa", "rsa")),
        hashed_other=hashed(f"[other.test]:{wire.port}"),
    )
    logged = (server.folder / "log").stat().st_size
    with pytest.raises(TargetError) as caught:
        open_and_leave(destination(server, tmp_path / "out", wire.port, text + "\n"))
    wire.close()
    assert wire.connections <= 1
    assert "kdumpctl propagate" in str(caught.value)
    assert "Accepted" not in (server.folder / "log").read_bytes()[logged:].decode()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["{at}", "{hashed}", "x,{at}", "[dump?.test]:{port}"])
def test_a_server_that_is_the_pinned_one(name: str, server: Sshd, tmp_path: Path) -> None:
    at = f"[{NAME}]:{server.port}"
    text = name.format(at=at, hashed=hashed(at), port=server.port) + f" {public(server.host_key)}\n"
    open_and_leave(destination(server, tmp_path / "out", known=text))
    assert (tmp_path / "out/c").is_dir()


def test_several_pinned_keys(server: Sshd, tmp_path: Path) -> None:
    """While a key is changed on the server both are pinned."""
    at = f"[{NAME}]:{server.port}"
    text = "".join(f"{at} {key}\n" for key in (public(make_key(tmp_path / "old")), public(server.host_key)))
    open_and_leave(destination(server, tmp_path / "out", known=text))


OLD = {
    "signatures of host keys with SHA-1": ("HostKeyAlgorithms ssh-rsa", "rsa"),
    "key exchange with SHA-1": ("KexAlgorithms diffie-hellman-group14-sha1", "ed25519"),
    "checksums with SHA-1": ("MACs hmac-sha1", "ed25519"),
    "CBC": ("Ciphers aes128-cbc", "ed25519"),
}


@pytest.mark.parametrize(("option", "kind"), OLD.values(), ids=OLD.keys())
def test_a_server_that_offers_only_what_is_broken(option: str, kind: str, tmp_path: Path) -> None:
    (tmp_path / "sshd").mkdir()
    make_key(tmp_path / "sshd/host", kind)
    with running(tmp_path / "sshd", option) as server:
        wire = Wire(server.port)
        with pytest.raises(RefusedError, match=r"no method in common|kind that is pinned"):
            open_and_leave(destination(server, tmp_path / "out", wire.port))
        wire.close()
        assert wire.connections == 1


def test_encrypt_then_mac_is_not_chosen_where_something_else_is_offered(server: Sshd, tmp_path: Path) -> None:
    """Terrapin (CVE-2023-48795) needs it, or ChaCha20, which is never offered."""
    connection = ssh.SshConnection(destination(server, tmp_path), 20.0)
    assert "etm" not in connection._transport.local_mac
    assert "chacha" not in connection._transport.local_cipher
    connection.close()


@pytest.mark.parametrize("option", ["AllowUsers nobody", "PubkeyAuthentication no\nPasswordAuthentication yes"])
def test_a_server_that_does_not_take_the_key(option: str, tmp_path: Path) -> None:
    with running(tmp_path / "sshd", option) as server:
        wire = Wire(server.port)
        began = time.monotonic()
        with pytest.raises(RefusedError, match="does not take the key"):
            open_and_leave(destination(server, tmp_path / "out", wire.port))
        wire.close()
        assert wire.connections == 1
        assert time.monotonic() - began < 60


def test_keys_that_cannot_be_used(server: Sshd, tmp_path: Path) -> None:
    usual = destination(server, tmp_path / "out")
    for name, words, text in (
        ("none", "cannot be read", None),
        ("no key", "no private key", "x"),
    ):
        path = tmp_path / name
        if text is not None:
            path.write_text(text)
            path.chmod(0o600)
        with pytest.raises(RefusedError, match=words):
            ssh.read_private_key(path)
    open_key = make_key(tmp_path / "open")
    open_key.chmod(0o644)
    with pytest.raises(RefusedError, match="read by others"):
        ssh.read_private_key(open_key)
    assert ssh.read_private_key(make_key(tmp_path / "rsa", "rsa")).get_name() == "ssh-rsa"
    assert usual.key == str(server.key)


class Liar:
    """Takes connections and says `lines` for ever, or nothing."""

    def __init__(self, line: bytes) -> None:
        self._line = line
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.connections = 0
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                taken, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self._talk, args=(taken,), daemon=True).start()

    def _talk(self, taken: socket.socket) -> None:
        try:
            while self._line:
                taken.sendall(self._line)
            time.sleep(60)
        except OSError:
            taken.close()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)  # closing alone would leave the thread in accept(2)
        self._listener.close()


@pytest.mark.parametrize("line", [b"", b"welcome\r\n" * 100, b"x" * 4096], ids=["tarpit", "flood", "one long line"])
def test_what_is_no_server_costs_a_bounded_time(
    line: bytes, server: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kdumpd.targets.link.REPLY_SEC", 1.0)
    liar = Liar(line)
    began = time.monotonic()
    with pytest.raises(TargetError, match="within 5 s"):
        open_and_leave(destination(server, tmp_path / "out", liar.port), give_up_sec=5.0)
    liar.close()
    assert time.monotonic() - began < 60
    assert liar.connections >= 2


def test_fingerprints_are_openssh_s(tmp_path: Path) -> None:
    import subprocess

    key = make_key(tmp_path / "k")
    shown = subprocess.run(["ssh-keygen", "-l", "-f", key], capture_output=True, text=True, check=True).stdout.split()[
        1
    ]
    (found,) = keys_of(f"h {public(key)}\n", "H")
    assert found.fingerprint == shown
    assert keys_of(found.line("H", 2222), "h", 2222) == (found,)
    assert known_hosts.name_of("h", 22) == "h"
