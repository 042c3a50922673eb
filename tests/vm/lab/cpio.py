# SPDX-License-Identifier: GPL-2.0-or-later
"""A few files as an initramfs in newc format (Documentation/driver-api/early-userspace/buffer-format.rst).

For the laboratory's own initramfs only: no links, no device nodes, everything owned by root and executable.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path


def archive(*, folders: Sequence[str], files: Mapping[str, Path]) -> bytes:
    """The archive: `folders` first, then `files` (name inside -> file to read)."""
    entries = [(name, 0o040755, b"") for name in folders]
    entries += [(name, 0o100755, path.read_bytes()) for name, path in files.items()]
    body = b"".join(_entry(number, *entry) for number, entry in enumerate(entries, start=1))
    return body + _entry(0, "TRAILER!!!", 0, b"")


def _entry(number: int, name: str, mode: int, data: bytes) -> bytes:
    encoded = name.encode() + b"\0"
    fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(encoded), 0)
    head = b"070701" + b"".join(b"%08X" % field for field in fields)
    return _padded(head + encoded) + _padded(data)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
