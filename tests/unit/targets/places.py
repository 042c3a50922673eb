# SPDX-License-Identifier: GPL-2.0-or-later
"""A real server as a destination."""

from __future__ import annotations

from pathlib import Path

from lab.sshd import NAME, Sshd

from kdumpd.config.capture import SshDestination


def destination(
    server: Sshd, directory: Path | str, port: int | None = None, known: str | None = None
) -> SshDestination:
    """The server as a destination, perhaps through a wire at `port`; `known` stands in for its known_hosts file."""
    port = server.port if port is None else port
    return SshDestination(
        user="root",
        host=NAME,
        port=port,
        directory=str(directory),
        addresses=("127.0.0.1",),
        key=str(server.key),
        known_hosts=str(server.pin(port, known)),
    )
