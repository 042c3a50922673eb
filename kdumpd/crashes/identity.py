# SPDX-License-Identifier: GPL-2.0-or-later
"""Private keys of age(1), as age-keygen writes them: a key a line, `#` before comments. Read for decrypting only."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from kdumpd.config.age_keys import identity_key
from kdumpd.dumpfile.stored import is_encrypted
from kdumpd.errors import DeniedError, NotFoundError, UsageError, os_reason

_LIMIT_BYTES = 1 << 20
STDIN = Path("-")


def default_identity(environment: Mapping[str, str] = os.environ) -> Path:
    """The file that is read when none is named."""
    configured = environment.get("XDG_CONFIG_HOME") or os.path.join(environment.get("HOME") or "/root", ".config")
    return Path(configured) / "kdumpd" / "identity.txt"


def read_identities(paths: Sequence[Path]) -> tuple[bytes, ...]:
    """The 32 bytes of each private key in the files, in their order; STDIN is standard input.

    Raises DeniedError for a file that others may read, NotFoundError for one that cannot be read, UsageError for one
    that holds no keys. No sentence repeats a key.
    """
    return tuple(key for path in paths for key in _keys(path, _read(path)))


def _read(path: Path) -> bytes:
    if path == STDIN:
        return sys.stdin.buffer.read(_LIMIT_BYTES + 1)
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            # A pipe or a terminal keeps nothing that others could read later.
            if stat.S_ISREG(status.st_mode) and status.st_mode & 0o077:
                mode = stat.S_IMODE(status.st_mode)
                raise DeniedError(
                    f"{path} is a private key that others may read: its mode is {mode:04o}", hint=f"chmod 600 {path}"
                )
            return file.read(_LIMIT_BYTES + 1)
    except OSError as error:
        raise NotFoundError(
            f"the private key {path} cannot be read: {os_reason(error)}", hint="name it with --identity FILE"
        ) from error


def _keys(path: Path, data: bytes) -> list[bytes]:
    name = "standard input" if path == STDIN else str(path)
    if is_encrypted(data):
        raise UsageError(
            f"{name} is protected by a passphrase", hint=f"age -d {path} | kdumpctl decrypt --identity - ..."
        )
    if len(data) > _LIMIT_BYTES:
        raise UsageError(f"{name} is too long for a file of keys")
    found = []
    for number, line in enumerate(data.decode("utf-8", errors="replace").splitlines(), start=1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        try:
            found.append(identity_key(text))
        except ValueError as error:
            raise UsageError(f"{name}:{number}: this is no private key of age: {error}") from None
    if not found:
        raise UsageError(f"{name} holds no private key", hint="age-keygen -o FILE makes one")
    return found
