# SPDX-License-Identifier: GPL-2.0-or-later
"""SSH: a connection to exactly the server whose key is pinned, by exactly the key that was made for this.

paramiko's Transport is used without its SSHClient: so there is no agent, no key of ~/.ssh, no password and no policy
that could learn a host key. The only module that imports paramiko, and it is imported only for such targets.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import paramiko

from kdumpd.config.capture import SshDestination
from kdumpd.errors import TargetError
from kdumpd.targets import known_hosts
from kdumpd.targets.link import GIVE_UP_SEC, REPLY_SEC, Link, RefusedError
from kdumpd.targets.pipe import PipeDirectory
from kdumpd.targets.remote import RemoteDirectory
from kdumpd.targets.sftp import LinkLostError, SftpSession
from kdumpd.targets.target import Store, Target

_KEEPALIVE_SEC = 15
_RUN_SEC = 30.0
_RUN_BYTES_PER_SEC = 10_000_000  # of a file that the server is to read
_OUTPUT = 64 << 10
# RSA keys sign with SHA-2 only.
_RSA = ("rsa-sha2-512", "rsa-sha2-256")

# What goes wrong is raised and told in one sentence; paramiko's own threads would put tracebacks on the console.
logging.getLogger("paramiko").addHandler(logging.NullHandler())
logging.getLogger("paramiko").propagate = False


class SshConnection:
    """An authenticated connection. `sftp` is its conversation; None with a server that has no SFTP."""

    def __init__(self, destination: SshDestination, wait_sec: float) -> None:
        """Raises RefusedError when the server's key is not the pinned one or ours is not taken, LinkLostError when
        another try makes sense."""
        self._name = str(destination)
        keys = known_hosts.read_keys(Path(destination.known_hosts), destination.host, destination.port)
        key = read_private_key(Path(destination.key))
        began = time.monotonic()
        self._transport = _transport(_socket(destination, wait_sec))
        self.sftp: SftpSession | None = None
        try:
            with self._limit(max(1.0, wait_sec - (time.monotonic() - began))):
                self._shake_hands(keys, wait_sec)
                self._authenticate(destination.user, key)
                self._open_sftp(wait_sec)
        except BaseException:
            self.close()
            raise
        self._transport.set_keepalive(_KEEPALIVE_SEC)

    @contextlib.contextmanager
    def _limit(self, seconds: float) -> Iterator[None]:
        """Some of paramiko's waits have no end: closing the transport ends them all."""
        timer = threading.Timer(seconds, self._transport.close)
        timer.daemon = True
        timer.start()
        try:
            yield
        except (paramiko.SSHException, EOFError, OSError) as error:
            words = str(error) or "it closed the connection"
            late = "" if timer.is_alive() else f" within {seconds:.0f} s"
            raise LinkLostError(f"the server did not answer{late}: {words}") from error
        finally:
            timer.cancel()

    def _shake_hands(self, keys: tuple[known_hosts.HostKey, ...], wait_sec: float) -> None:
        options = self._transport.get_security_options()
        options.kex = tuple(name for name in options.kex if not name.endswith("-sha1") and "sha1-" not in name)
        options.ciphers = tuple(name for name in options.ciphers if "-ctr" in name or "-gcm" in name)
        # Encrypt-then-MAC comes last: with it, and without strict key exchange, a handshake can be cut (Terrapin).
        digests = [name for name in options.digests if name.startswith("hmac-sha2-")]
        options.digests = tuple(sorted(digests, key=lambda name: "-etm" in name))
        kinds = tuple(dict.fromkeys(kind for key in keys for kind in (_RSA if key.kind == "ssh-rsa" else (key.kind,))))
        try:
            options.key_types = tuple(kind for kind in kinds if kind in options.key_types)
        except ValueError as error:
            raise RefusedError(f"a host key of {self._name} is of a kind that is not known here: {error}") from error
        try:
            self._transport.start_client(timeout=wait_sec)
        except paramiko.SSHException as error:
            if "Incompatible" in type(error).__name__ + str(error):
                raise RefusedError(
                    f"{self._name} and this machine have no method in common, or it has no host key of a kind that is"
                    f" pinned ({', '.join(kinds)}): {error}",
                    hint="if its keys were changed on purpose: kdumpctl propagate",
                ) from error
            raise
        found = self._transport.get_remote_server_key()
        if found.asbytes() not in {key.blob for key in keys}:
            shown = known_hosts.HostKey(found.get_name(), found.asbytes())
            raise RefusedError(
                f"{self._name} has another host key than the pinned one: {shown.kind} {shown.fingerprint}",
                hint="somebody may stand in between; if the key was changed on purpose: kdumpctl propagate",
            )

    def _authenticate(self, user: str, key: paramiko.PKey) -> None:
        try:
            missing = self._transport.auth_publickey(user, key)
        except paramiko.AuthenticationException as error:
            text = str(error)
            if not self._transport.is_active() and ("EOF" in text or "imeout" in text):
                raise
            raise RefusedError(
                f"{self._name} does not take the key that was made for dumps: {text or 'refused'}",
                hint="kdumpctl propagate",
            ) from error
        if missing:
            raise RefusedError(
                f"{self._name} asks for more than a key: {', '.join(missing)}",
                hint="let this account log in by its key alone",
            )

    def _open_sftp(self, wait_sec: float) -> None:
        channel = self._transport.open_session(timeout=wait_sec)
        try:
            channel.invoke_subsystem("sftp")
        except paramiko.SSHException:
            if not self._transport.is_active():
                raise
            return
        self.sftp = SftpSession(channel, REPLY_SEC)

    def channel(self, command: str) -> paramiko.Channel:
        """A command of the server's, running. Raises LinkLostError."""
        with self._limit(_RUN_SEC):
            channel = self._transport.open_session(timeout=_RUN_SEC)
            channel.exec_command(command)
            return channel

    def run(self, command: str, alive: Callable[[], None], seconds: float = _RUN_SEC) -> tuple[int, bytes]:
        """The status and the output of a command; status -1 when the server runs none. Raises LinkLostError."""
        try:
            channel = self.channel(command)
        except LinkLostError:
            if not self._transport.is_active():
                raise
            return -1, b""
        with contextlib.closing(channel):
            channel.shutdown_write()
            return self.finish(channel, alive, seconds)

    def finish(self, channel: paramiko.Channel, alive: Callable[[], None], seconds: float) -> tuple[int, bytes]:
        """The status and the output of the command that runs on `channel`, as soon as it ends. Raises LinkLostError."""
        output, end = b"", time.monotonic() + seconds
        channel.settimeout(1.0)
        while True:
            try:
                data = channel.recv(_OUTPUT)
            except TimeoutError:
                alive()
                if time.monotonic() > end:
                    raise LinkLostError(f"a command on the server did not end within {seconds:.0f} s") from None
                continue
            except (OSError, EOFError) as error:
                raise LinkLostError(f"the connection broke off: {error}") from error
            if not data:
                break
            output = (output + data)[:_OUTPUT]
        # The status comes beside the end of the output; a connection that broke off has none.
        while not channel.status_event.wait(0.5):
            if time.monotonic() > end or channel.closed:
                break
        return channel.exit_status, output

    def close(self) -> None:
        """Never fails, never waits long."""
        with contextlib.suppress(Exception):
            self._transport.close()


def _socket(destination: SshDestination, wait_sec: float) -> socket.socket:
    """A connection to the first of the addresses that answers. Raises LinkLostError."""
    places = destination.addresses or (destination.host,)
    trouble: OSError = OSError("no address")
    for place in places:
        # Not create_connection: it looks addresses up as names, for which a capture image has no codec.
        found = socket.socket(socket.AF_INET6 if ":" in place else socket.AF_INET, socket.SOCK_STREAM)
        found.settimeout(max(1.0, wait_sec / len(places)))
        try:
            found.connect((place, destination.port))
        except OSError as error:
            found.close()
            trouble = error
            continue
        found.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(REPLY_SEC * 1000))
        found.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        found.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return found
    raise LinkLostError(f"{' and '.join(places)}, port {destination.port}: {trouble}") from trouble


def _transport(connected: socket.socket) -> paramiko.Transport:
    try:
        return paramiko.Transport(connected)
    except (paramiko.SSHException, OSError) as error:
        connected.close()
        raise LinkLostError(str(error)) from error


def host_key(destination: SshDestination, wait_sec: float) -> known_hosts.HostKey:
    """The key that the server shows; nothing is trusted, and nobody logs in. Raises TargetError."""
    try:
        transport = _transport(_socket(destination, wait_sec))
        try:
            transport.start_client(timeout=wait_sec)
            found = transport.get_remote_server_key()
        finally:
            transport.close()
    except (LinkLostError, paramiko.SSHException, OSError, EOFError) as error:
        raise TargetError(f"{destination.host} shows no host key: {error}", hint="does sshd run there?") from error
    return known_hosts.HostKey(found.get_name(), found.asbytes())


def read_private_key(path: Path) -> paramiko.PKey:
    """The key that was made for dumps. Raises RefusedError naming what is wrong with it."""
    hint = "kdumpctl propagate"
    try:
        mode = os.stat(path).st_mode
        if mode & 0o077:
            raise RefusedError(f"the key {path} can be read by others", hint=f"chmod 600 {path}")
        for kind in (paramiko.Ed25519Key, paramiko.ECDSAKey, paramiko.RSAKey):
            try:
                return kind.from_private_key_file(str(path))
            except paramiko.PasswordRequiredException as error:
                raise RefusedError(
                    f"the key {path} needs a passphrase, which nobody could type after a crash", hint=hint
                ) from error
            except (paramiko.SSHException, ValueError, IndexError):
                continue
    except OSError as error:
        raise RefusedError(f"the key {path} cannot be read: {error.strerror}", hint=hint) from error
    raise RefusedError(f"{path} holds no private key of a known kind (ed25519, ecdsa, rsa)", hint=hint)


class _Anybody(paramiko.ServerInterface):  # type: ignore[misc]  # of a library without types
    """A server that takes every key."""

    def get_allowed_auths(self, username: str) -> str:
        return "publickey"

    def check_auth_publickey(self, username: str, key: paramiko.PKey) -> int:
        return int(paramiko.AUTH_SUCCESSFUL)


def try_out() -> None:
    """Connects to itself, so that all that paramiko loads late has been loaded. Raises what paramiko raises."""
    key = paramiko.ECDSAKey.generate()
    near, far = socket.socketpair()
    server, client = paramiko.Transport(near), paramiko.Transport(far)
    try:
        server.add_server_key(key)
        server.start_server(event=threading.Event(), server=_Anybody())
        client.start_client(timeout=_RUN_SEC)
        client.auth_publickey("nobody", key)
    finally:
        client.close()
        server.close()


class SshServer(Target):
    """A destination on an SSH server."""

    def __init__(self, destination: SshDestination, give_up_sec: float = GIVE_UP_SEC) -> None:
        """`give_up_sec` is how long it is tried to come back after the connection broke off."""
        self.name = str(destination)
        self._destination = destination
        self._give_up_sec = give_up_sec

    @contextlib.contextmanager
    def open_crash(self, name: str, alive: Callable[[], None]) -> Iterator[Store]:
        """As Target.open_crash: connected until the end of the block."""
        wanted = self._destination
        shown = f"{wanted.user}@{wanted.host}"
        link: Link[SshConnection] = Link(
            lambda seconds: SshConnection(wanted, seconds), shown, alive, self._give_up_sec
        )

        def run(command: str, size: int) -> bytes | None:
            try:
                return link.connection.run(command, alive, _RUN_SEC + size / _RUN_BYTES_PER_SEC)[1]
            except LinkLostError as error:
                link.lose(error)
                return None

        try:
            if link.connection.sftp is None:
                yield PipeDirectory.create(link.connection, shown, wanted.directory, name, alive)
            else:
                yield RemoteDirectory.create(link, wanted.directory, name, run)
        except LinkLostError as error:
            raise TargetError(f"the connection to {shown} broke off: {error}") from error
        finally:
            link.close()
