# SPDX-License-Identifier: GPL-2.0-or-later
"""What the service and the loader say to each other: one request with two descriptors, one answer, on a socket that
keeps messages apart (SOCK_SEQPACKET).
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
from pathlib import Path
from typing import Any

from kdumpd.config.kexec_syscall import KexecSyscall
from kdumpd.errors import KdumpError, LoadError, LoadLostError, UnsupportedError
from kdumpd.host.kexec_pair import OpenPair, Pair

LARGEST_BYTES = 64 << 10
_TEXTS = ("kernel", "initrd", "initrd_sha256", "cmdline", "kernel_sha256", "syscall", "keys")


def send_request(connection: socket.socket, opened: OpenPair | None) -> None:
    """Asks for a load of `opened`, or for an unload. Raises OSError."""
    if opened is None:
        connection.sendall(json.dumps({"action": "unload"}).encode())
        return
    pair = {name: str(value) for name, value in opened.pair._asdict().items()}
    pair["keys"] = " ".join(opened.pair.keys)
    message = json.dumps({"action": "load", "pair": pair}).encode()
    socket.send_fds(connection, [message], [opened.kernel_fd, opened.initrd_fd])


def receive_request(connection: socket.socket) -> OpenPair | None:
    """What was asked for: None for an unload. The caller closes the descriptors. Raises OSError, LoadError."""
    data, fds, flags, _ = socket.recv_fds(connection, LARGEST_BYTES, 8)
    try:
        if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
            raise ValueError("it is too long")
        raw: Any = json.loads(data)
        action = raw["action"]
        if (action, len(fds)) == ("unload", 0):
            return None
        if (action, len(fds)) != ("load", 2):
            raise ValueError(f"{action!r} with {len(fds)} descriptors")
        texts = {name: raw["pair"][name] for name in _TEXTS}
        if not all(isinstance(text, str) for text in texts.values()):
            raise ValueError("a field is no text")
        pair = Pair(
            kernel=Path(texts["kernel"]),
            initrd=Path(texts["initrd"]),
            initrd_sha256=texts["initrd_sha256"],
            cmdline=texts["cmdline"],
            kernel_sha256=texts["kernel_sha256"],
            syscall=KexecSyscall(texts["syscall"]),
            keys=tuple(texts["keys"].split()),
        )
    except (ValueError, KeyError, TypeError) as error:
        for fd in fds:
            os.close(fd)
        raise LoadError(f"The loader does not understand the request: {error}") from error
    return OpenPair(pair, *fds)


def send_answer(connection: socket.socket, error: KdumpError | None) -> None:
    """How it went. Raises OSError."""
    answer: dict[str, Any] = {"done": error is None}
    if error is not None:
        kinds = {UnsupportedError: "unsupported", LoadLostError: "lost"}
        kind = next((word for cls, word in kinds.items() if isinstance(error, cls)), "load")
        code = error.errno if isinstance(error, LoadError) else None
        answer.update(kind=kind, sentence=error.sentence, hint=error.hint, errno=code)
    connection.sendall(json.dumps(answer).encode())


def receive_answer(connection: socket.socket) -> KdumpError | None:
    """The error that ended the work; None when it was done. Raises OSError, ValueError when no answer came."""
    answer: Any = json.loads(connection.recv(LARGEST_BYTES))
    if answer["done"] is True:
        return None
    sentence, hint, code = str(answer["sentence"]), answer["hint"], answer["errno"]
    hint = hint if isinstance(hint, str) else None
    if answer["kind"] == "unsupported":
        return UnsupportedError(sentence, hint=hint)
    if answer["kind"] == "lost":
        return LoadLostError(sentence, hint=hint)
    return LoadError(sentence, hint=hint, errno=code if isinstance(code, int) else None)


@contextlib.contextmanager
def closing(opened: OpenPair | None) -> Any:
    """Closes the descriptors of a received request at the end of the block."""
    try:
        yield
    finally:
        if opened is not None:
            os.close(opened.kernel_fd)
            os.close(opened.initrd_fd)
