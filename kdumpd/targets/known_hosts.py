# SPDX-License-Identifier: GPL-2.0-or-later
"""Keys by which a server is known: OpenSSH's known_hosts files (sshd(8), SSH_KNOWN_HOSTS FILE FORMAT).

Read without a library, so that the host can tell what is pinned, and in the strictest way: a key of another name or
port is not this server's, a key that is marked as revoked is nobody's, and certificates are not followed.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import fnmatch
import hashlib
import hmac
from pathlib import Path

from kdumpd.errors import TargetError, os_reason

PORT = 22


@dataclasses.dataclass(frozen=True, slots=True)
class HostKey:
    """A public key as it is on the wire. `kind` is its name there, e.g. "ssh-ed25519"."""

    kind: str
    blob: bytes

    @property
    def fingerprint(self) -> str:
        """As ssh-keygen -l shows it: SHA256:..."""
        digest = base64.b64encode(hashlib.sha256(self.blob).digest()).decode().rstrip("=")
        return f"SHA256:{digest}"

    def line(self, host: str, port: int) -> str:
        """The line of a known_hosts file that pins the key."""
        return f"{name_of(host, port)} {self.kind} {base64.b64encode(self.blob).decode()}\n"


def name_of(host: str, port: int) -> str:
    """A host as known_hosts files call it: the port stands beside the name unless it is 22."""
    return host.lower() if port == PORT else f"[{host.lower()}]:{port}"


def parse_key(kind: str, encoded: str) -> HostKey | None:
    """A key from its two words; None when they contradict each other or make no sense."""
    try:
        blob = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        return None
    size = int.from_bytes(blob[:4], "big")
    return HostKey(kind, blob) if blob[4 : 4 + size] == kind.encode() and len(blob) > 4 + size else None


def keys_of(text: str, host: str, port: int = PORT) -> tuple[HostKey, ...]:
    """The keys that `text` has for the server, without those that it has as revoked for anybody.

    Lines that cannot be read are left out: that only makes it stricter.
    """
    found: dict[HostKey, None] = {}
    revoked: set[bytes] = set()
    for line in text.splitlines():
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        marker = words.pop(0) if words[0].startswith("@") else None
        key = parse_key(words[1], words[2]) if len(words) >= 3 else None
        if key is None:
            continue
        if marker == "@revoked":
            revoked.add(key.blob)
        elif marker is None and _is_named(words[0], name_of(host, port)):
            found.setdefault(key)
    return tuple(key for key in found if key.blob not in revoked)


def _is_named(names: str, wanted: str) -> bool:
    """Whether the first word of a line means `wanted`: hashed, or patterns with commas between them."""
    if names.startswith("|1|"):
        _, _, salt, digest, *_ = [*names.split("|"), "", ""]
        try:
            mac = hmac.new(base64.b64decode(salt), wanted.encode(), hashlib.sha1).digest()
            return hmac.compare_digest(mac, base64.b64decode(digest))
        except (binascii.Error, ValueError):
            return False
    patterns = names.lower().split(",")
    if any(name.startswith("!") and _matches(name[1:], wanted) for name in patterns):
        return False
    return any(_matches(name, wanted) for name in patterns)


def _matches(pattern: str, name: str) -> bool:
    # Only ? and * mean something here; brackets stand for themselves.
    return fnmatch.fnmatchcase(name, pattern.replace("[", "[[]"))


def read_keys(path: Path, host: str, port: int = PORT) -> tuple[HostKey, ...]:
    """The keys that the file pins for the server. Raises TargetError when there is none."""
    try:
        found = keys_of(path.read_text(encoding="utf-8", errors="replace"), host, port)
    except FileNotFoundError:
        found = ()
    except OSError as error:
        raise TargetError(f"{path} cannot be read: {os_reason(error)}") from error
    if not found:
        raise TargetError(
            f"{path} has no key for {name_of(host, port)}, so that it could not be told from another machine",
            hint="kdumpctl propagate",
        )
    return found
