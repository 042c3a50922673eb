# SPDX-License-Identifier: GPL-2.0-or-later
"""`python3 -m kdumpd.loader`: takes one request from the socket on its standard input, carries it out, answers, ends.

systemd starts it for each connection (kdumpd-load.socket); where there is no systemd the service starts it as a child.
"""

from __future__ import annotations

import os
import socket
import struct
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from kdumpd.errors import KdumpError, LoadError
from kdumpd.host.kexec import FileLoader, KexecLoader
from kdumpd.host.machine import read_machine
from kdumpd.loader.protocol import closing, receive_request, send_answer

if TYPE_CHECKING:
    import argparse

    from kdumpd.loader.older import Loads

_REQUEST_SECONDS = 30.0


def main(arguments: list[str] | None = None) -> int:
    """Serves one request; returns the exit status, 0 also when the answer was an error."""
    words = sys.argv[1:] if arguments is None else arguments
    # Every import here is time that a machine waits for its capture kernel: systemd gives no word, or one.
    options = _parse(words) if words else None
    root = Path("/") if options is None else options.root
    arch = read_machine(root).arch
    file_loader = FileLoader(arch, root=root)
    loader: Loads = file_loader
    if options is not None and options.tool:
        from kdumpd.loader.older import older_loader

        loader = older_loader(arch, root=root)
    return serve(socket.socket(fileno=os.dup(0)), loader, file_loader)


def _parse(words: list[str]) -> argparse.Namespace:
    import argparse

    parser = argparse.ArgumentParser(prog="python3 -m kdumpd.loader", description=__doc__)
    parser.add_argument(
        "--root", type=Path, default=Path("/"), metavar="FOLDER", help="the machine's facts lie below it"
    )
    parser.add_argument("--tool", action="store_true", help="load with kexec_load(2) instead of kexec_file_load(2)")
    return parser.parse_args(words)


def serve(connection: socket.socket, loader: Loads, unloader: KexecLoader) -> int:
    """Answers one request on `connection`.

    A fault ends the process without an answer: what the kernel holds then is not known, and so silence is taken.
    """
    with connection:
        if not _is_asked(connection):
            return 0
        answer = _carry_out(connection, loader, unloader)
        try:
            send_answer(connection, answer)
        except OSError as error:
            print(f"<3>kdumpd.loader: the service went away: {error}", file=sys.stderr)
            return 1
    return 0


def _is_asked(connection: socket.socket) -> bool:
    """Waits for the request. The service connects while it looks whether there is something to load, and may not come
    back."""
    connection.settimeout(_REQUEST_SECONDS)
    try:
        return bool(connection.recv(1, socket.MSG_PEEK))
    except OSError:
        return False


def _carry_out(connection: socket.socket, loader: Loads, unloader: KexecLoader) -> KdumpError | None:
    try:
        _require_root(connection)
        opened = receive_request(connection)
        with closing(opened):
            if opened is None:
                unloader.unload()
            else:
                loader.load(opened)
    except KdumpError as error:
        return error
    return None


def _require_root(connection: socket.socket) -> None:
    """Only the service asks; the socket has mode 0600, and this is the second lock."""
    # struct ucred, unix(7)
    size = struct.calcsize("3i")
    _, uid, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
    if uid != 0:
        raise LoadError(f"Only root may have a capture kernel loaded; the request came from user {uid}")


if __name__ == "__main__":
    sys.exit(main())
