# SPDX-License-Identifier: GPL-2.0-or-later
"""`python3 -m kdumpd.loader`: takes one request from the socket on its standard input, carries it out, answers, ends.

systemd starts it for each connection (kdumpd-load.socket); where there is no systemd the service starts it as a child.
"""

from __future__ import annotations

import argparse
import os
import socket
import struct
import sys
from pathlib import Path

from kdumpd.errors import KdumpError, LoadError
from kdumpd.host.kexec import FileLoader, KexecLoader
from kdumpd.host.machine import read_machine
from kdumpd.loader.older import Loads, older_loader
from kdumpd.loader.protocol import closing, receive_request, send_answer

_REQUEST_SECONDS = 30.0


def main(arguments: list[str] | None = None) -> int:
    """Serves one request; returns the exit status, 0 also when the answer was an error."""
    parser = argparse.ArgumentParser(prog="python3 -m kdumpd.loader", description=__doc__)
    parser.add_argument(
        "--root", type=Path, default=Path("/"), metavar="FOLDER", help="the machine's facts lie below it"
    )
    parser.add_argument("--tool", action="store_true", help="load with kexec_load(2) instead of kexec_file_load(2)")
    options = parser.parse_args(arguments)
    arch = read_machine(options.root).arch
    file_loader = FileLoader(arch, root=options.root)
    loader: Loads = older_loader(arch, root=options.root) if options.tool else file_loader
    return serve(socket.socket(fileno=os.dup(0)), loader, file_loader)


def serve(connection: socket.socket, loader: Loads, unloader: KexecLoader) -> int:
    """Answers one request on `connection`.

    A fault ends the process without an answer: what the kernel holds then is not known, and so silence is taken.
    """
    with connection:
        answer = _carry_out(connection, loader, unloader)
        try:
            send_answer(connection, answer)
        except OSError as error:
            print(f"<3>kdumpd.loader: the service went away: {error}", file=sys.stderr)
            return 1
    return 0


def _carry_out(connection: socket.socket, loader: Loads, unloader: KexecLoader) -> KdumpError | None:
    try:
        _require_root(connection)
        connection.settimeout(_REQUEST_SECONDS)
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
