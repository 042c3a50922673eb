# SPDX-License-Identifier: GPL-2.0-or-later
"""A real OpenSSH server for the tests, and a wire to it that can be cut, frozen and counted."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

NAME = "dumps.test"
HOST = "10.0.2.2"  # this host, as a guest sees it through QEMU's own network
# The card of such a guest, as words for QEMU.
CARD = ("-netdev", "user,id=net0", "-device", "virtio-net-pci,netdev=net0,id=card0,mac=52:54:00:6b:64:10")
# What a guest's first system does to reach it.
WAY = f"""
await /sys/class/net/eth0
ip link set eth0 up
ip address add 10.0.2.15/24 dev eth0
ip route add default via {HOST}
"""


class Port:
    """A port of 127.0.0.1 that is free, stays this object's until `release`, and may be listened at again and again.

    None of those that the kernel gives to connections (net.ipv4.ip_local_port_range): one of them could be gone before
    the server that it is for has begun, or while that is down. A client that knocks there meanwhile would meet itself.
    """

    def __init__(self) -> None:
        for number in random.SystemRandom().sample(range(15_000, 32_000), 2000):
            # The name is taken by whoever else looks for a port, in this process or another one, and goes with it.
            self._mark = socket.socket(socket.AF_UNIX)
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    self._mark.bind(f"\0kdumpd-test-port-{number}")
                    probe.bind(("127.0.0.1", number))
                except OSError:
                    self._mark.close()
                    continue
            self.number = number
            return
        raise AssertionError("no port is free")

    def release(self) -> None:
        """It may be somebody else's."""
        self._mark.close()


def make_key(path: Path, kind: str = "ed25519") -> Path:
    """A key pair without a passphrase."""
    subprocess.run(["ssh-keygen", "-q", "-t", kind, "-N", "", "-C", "", "-f", path], check=True)
    return path


def public(path: Path) -> str:
    """The two words of the public key."""
    return " ".join(Path(f"{path}.pub").read_text().split()[:2])


class Sshd:
    """sshd on 127.0.0.1, in a folder of its own. `options` are lines of sshd_config, which come first and so hold."""

    def __init__(
        self, folder: Path, *options: str, sftp: str | None = "internal-sftp", room: str | None = None
    ) -> None:
        """With `room` /mnt is a tmpfs of that size for the server alone."""
        self.folder = folder
        folder.mkdir(mode=0o700, exist_ok=True)
        self.key = folder / "id"
        self.host_key = folder / "host"
        for key in (self.key, self.host_key):
            if not key.exists():
                make_key(key)
        (folder / "authorized_keys").write_text(public(self.key) + "\n")
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        self._reserved = Port()
        self.port = self._reserved.number
        lines = [
            *options,
            f"Port {self.port}",
            "ListenAddress 127.0.0.1",
            f"HostKey {self.host_key}",
            f"AuthorizedKeysFile {folder}/authorized_keys {folder}/.ssh/authorized_keys",
            "PidFile none",
            "StrictModes no",
            "UsePAM no",
            "PermitRootLogin prohibit-password",
            "PasswordAuthentication no",
            f"SetEnv HOME={folder}",  # where no start-up file of a shell lies
            *([] if sftp is None else [f"Subsystem sftp {sftp}"]),
        ]
        (folder / "config").write_text("\n".join(lines) + "\n")
        self._room = room
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> Sshd:
        """Starts it, again if need be."""
        words = ["/usr/sbin/sshd", "-D", "-e", "-f", str(self.folder / "config")]
        if self._room is not None:
            mount = f'mount -t tmpfs -o size={self._room} none /mnt && exec "$@"'
            words = ["unshare", "-m", "sh", "-c", mount, "sh", *words]
        log = (self.folder / "log").open("ab")
        self._process = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
        log.close()
        end = time.monotonic() + 20
        while time.monotonic() < end:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1) as tried:
                tried.settimeout(5)
                if tried.recv(4) == b"SSH-":
                    return self
            assert self._process.poll() is None, (self.folder / "log").read_text()
            time.sleep(0.05)
        raise AssertionError((self.folder / "log").read_text())

    @property
    def pid(self) -> int:
        """The listening process."""
        assert self._process is not None
        return self._process.pid

    def _all(self) -> list[int]:
        """The server and the processes of its connections, which lead sessions of their own."""
        found, fresh = [], [self.pid]
        while fresh:
            pid = fresh.pop()
            found.append(pid)
            with contextlib.suppress(OSError):
                fresh += map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
        return found

    def signal(self, number: int) -> None:
        """To the server and all its connections."""
        for pid in self._all():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def stop(self) -> None:
        """Kills all of it."""
        if self._process is not None:
            self.signal(signal.SIGKILL)
            self._process.wait(20)
            self._process = None

    def close(self) -> None:
        """Ends it for good."""
        self.stop()
        self._reserved.release()

    def pin(self, port: int, text: str | None = None, name: str = NAME) -> Path:
        """A known_hosts file with this server's key, seen at `port`, or with `text`."""
        path = self.folder / "known_hosts"
        path.write_text(f"[{name}]:{port} {public(self.host_key)}\n" if text is None else text)
        return path


@contextlib.contextmanager
def running(folder: Path, *options: str, sftp: str | None = "internal-sftp", room: str | None = None) -> Iterator[Sshd]:
    """An Sshd that ends with the block."""
    server = Sshd(folder, *options, sftp=sftp, room=room)
    try:
        yield server.start()
    finally:
        server.close()
        shutil.rmtree(folder, ignore_errors=True)


class Wire:
    """Forwards connections to a port. `cuts` are counts of bytes from the client, one a connection, after which that
    connection is cut with a reset; `frozen` stops all forwarding, silently. `connections` counts."""

    def __init__(self, port: int, *cuts: int, freeze_at: int | None = None) -> None:
        self._to = port
        self._cuts = list(cuts)
        self._freeze_at = freeze_at
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.connections = 0
        self.frozen = False
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            try:
                far = socket.create_connection(("127.0.0.1", self._to), timeout=10)
            except OSError:
                near.close()
                continue
            far.settimeout(None)
            cut = self._cuts.pop(0) if self._cuts else None
            freeze, self._freeze_at = self._freeze_at, None
            for arguments in ((near, far, cut, freeze), (far, near, None, None)):
                threading.Thread(target=self._forward, args=arguments, daemon=True).start()

    def _forward(self, source: socket.socket, sink: socket.socket, cut: int | None, freeze: int | None) -> None:
        passed = 0
        with contextlib.suppress(OSError):
            while data := source.recv(16384):
                if freeze is not None and passed + len(data) > freeze:
                    # What comes is taken and lost, and nobody is told.
                    while source.recv(16384):
                        pass
                    return
                if cut is not None and passed + len(data) >= cut:
                    sink.sendall(data[: cut - passed])
                    for end in (source, sink):
                        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                    break
                passed += len(data)
                sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def close(self) -> None:
        """No further connections."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # closing alone would leave the thread in accept(2)
        self._listener.close()
