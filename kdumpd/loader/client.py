# SPDX-License-Identifier: GPL-2.0-or-later
"""The service's side of the loader: hands it two open files, waits, and gets an answer or the loader's end.

Knows three loaders: one for kexec_file_load(2), that may do nothing else; one that is root's, for keys of encrypted
targets; and one for kexec-tools, which wants to see much of the machine. systemd starts them by their sockets;
elsewhere they are children.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from kdumpd.config.kexec_syscall import KexecSyscall
from kdumpd.errors import LoadError, LoadLostError, UnsupportedError, os_reason
from kdumpd.host.crypt_keys import is_in_use
from kdumpd.host.kexec_pair import OpenPair
from kdumpd.loader.protocol import receive_answer, send_request

FILE, KEYS, TOOL = "load", "load-keys", "load-tool"
_ANSWER_SECONDS = 400.0  # kexec-tools is given 300
_END_SECONDS = 10.0
_WAITS_SECONDS = 15.0  # half of what a loader does
_PACKAGE_PARENT = Path(__file__).resolve().parents[2]


class ProcessLoader:
    """Loads in another process. `units` says that systemd has the sockets kdumpd-load, -keys and -tool; `waiting` is a
    connection to a loader that was called before (call.py)."""

    def __init__(
        self,
        run_dir: Path,
        *,
        root: Path = Path("/"),
        units: bool,
        module: str = "kdumpd.loader",
        waiting: socket.socket | None = None,
    ) -> None:
        self._run_dir = run_dir
        self._root = root
        self._units = units
        self._module = module
        self._waiting = None if waiting is None else (waiting, time.monotonic())

    def load(self, opened: OpenPair) -> None:
        """Loads the pair. Raises LoadError (LoadLostError when nobody knows what happened) or UnsupportedError."""
        wanted = opened.pair.syscall
        if opened.pair.keys:
            if wanted is KexecSyscall.KEXEC_LOAD:
                raise LoadError(
                    "kexec_load(2) hands no keys over, and the target is encrypted",
                    hint="remove kexec_syscall from /etc/kdump.conf",
                )
            self._ask(KEYS, opened)
            return
        missing: UnsupportedError | None = None
        if wanted is not KexecSyscall.KEXEC_LOAD:
            try:
                # Keys that are still named for another target: a load that does not find them fails.
                self._ask(KEYS if is_in_use(self._root) else FILE, opened)
                return
            except UnsupportedError as error:
                if wanted is not KexecSyscall.AUTO:
                    raise
                missing = error
        try:
            self._ask(TOOL, opened)
        except UnsupportedError as error:
            if missing is None:
                raise
            raise UnsupportedError(f"{missing.sentence}, and {error.sentence}", hint=error.hint) from error

    @contextlib.contextmanager
    def soon(self) -> Iterator[None]:
        """Has systemd start the loader for kexec_file_load(2), which waits for its request, while the caller looks what
        is to be loaded. One that got none by the end of the block just ends."""
        if self._units and self._waiting is None:
            with contextlib.suppress(LoadError):  # told by whoever asks for the load
                self._waiting = (self._connect(FILE), time.monotonic())
        try:
            yield
        finally:
            self.let_go()

    def let_go(self) -> None:
        """A loader that was called and waits is asked for nothing."""
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            waiting[0].close()

    def unload(self) -> None:
        """Unloads whatever is loaded. Raises LoadError or UnsupportedError."""
        self._ask(FILE, None)

    def _ask(self, which: str, opened: OpenPair | None) -> None:
        with self._connection(which) as connection:
            connection.settimeout(_ANSWER_SECONDS)
            try:
                send_request(connection, opened)
            except OSError as error:
                raise LoadError(f"The loader cannot be asked: {os_reason(error)}") from error
            try:
                answer = receive_answer(connection)
            except (OSError, ValueError, KeyError, TypeError) as lost:
                unit = f"journalctl -u 'kdumpd-{which}@*'" if self._units else None
                raise LoadLostError("The loader ended without an answer", hint=unit) from lost
        if answer is not None:
            raise answer

    @contextlib.contextmanager
    def _connection(self, which: str) -> Iterator[socket.socket]:
        with self._by_socket(which) if self._units else self._by_child(which) as connection:
            yield connection

    @contextlib.contextmanager
    def _by_socket(self, which: str) -> Iterator[socket.socket]:
        waiting = self._take_waiting() if which == FILE else None
        with waiting or self._connect(which) as connection:
            yield connection

    def _take_waiting(self) -> socket.socket | None:
        """The connection to a loader that was started by `soon`, unless it may have given up waiting."""
        waiting, self._waiting = self._waiting, None
        if waiting is None:
            return None
        connection, since = waiting
        if time.monotonic() - since < _WAITS_SECONDS:
            return connection
        connection.close()
        return None

    def _connect(self, which: str) -> socket.socket:
        """A connection to the loader's socket. Raises LoadError."""
        path = self._run_dir / f"{which}.socket"
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            connection.connect(str(path))
        except OSError as error:
            connection.close()
            raise LoadError(
                f"The loader does not listen at {path}: {os_reason(error)}",
                hint=f"systemctl start kdumpd-{which}.socket",
                errno=error.errno,
            ) from error
        return connection

    @contextlib.contextmanager
    def _by_child(self, which: str) -> Iterator[socket.socket]:
        import subprocess  # under systemd nobody needs it

        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        words = [sys.executable or "/usr/bin/python3", "-m", self._module, "--root", str(self._root)]
        words += ["--tool"] if which == TOOL else []
        with ours:
            with theirs:
                try:
                    child = subprocess.Popen(
                        words, stdin=theirs.fileno(), stdout=subprocess.DEVNULL, env=_environment()
                    )
                except OSError as error:
                    raise LoadError(f"The loader cannot be started: {os_reason(error)}") from error
            try:
                yield ours
            finally:
                ours.close()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(_END_SECONDS)
                child.kill()
                child.wait()


def _environment() -> dict[str, str]:
    return {
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
        "LC_ALL": "C.UTF-8",
        "PYTHONPATH": os.pathsep.join([str(_PACKAGE_PARENT), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
