# SPDX-License-Identifier: GPL-2.0-or-later
"""Has systemd start the loader before the daemon has imported what decides whether there is something to load.

The daemon's first act, so it imports next to nothing. A loader that is asked for nothing just ends.
"""

from __future__ import annotations

import os
import socket

_LOADED = ("sys/kernel/kexec/crash_loaded", "sys/kernel/kexec_crash_loaded")  # as host/kexec.py


def call_loader(
    root: str = "/", ready: str = "var/lib/kdumpd/ready.json", run: str = "run/kdumpd"
) -> socket.socket | None:
    """A connection to the loader of kexec_file_load(2), if the kernel below `root` holds nothing and a choice is noted.

    None otherwise, and where no systemd listens: all of this is looked at again, and told.
    """
    if not os.path.exists(os.path.join(root, ready)) or not any(
        _is_empty(os.path.join(root, name)) for name in _LOADED
    ):
        return None
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        connection.connect(os.path.join(root, run, "load.socket"))
    except OSError:
        connection.close()
        return None
    return connection


def _is_empty(path: str) -> bool:
    try:
        with open(path, "rb") as file:
            return file.read().strip() == b"0"
    except OSError:
        return False
