# SPDX-License-Identifier: GPL-2.0-or-later
"""The directives of kdump.conf that name a target: text to the classes of `targets`.

Everything in them ends up in a mount, a name on a network or a path, so only what cannot be taken for something else
gets through: no blanks, no control characters, no leading dash. A ValueError's text is the complaint.
"""

from __future__ import annotations

import ipaddress
import re

from kdumpd.config.targets import LocalTarget, NfsTarget, RawTarget, SshTarget, Target
from kdumpd.config.values import absolute_path

FILESYSTEMS = frozenset({"ext2", "ext3", "ext4", "xfs", "btrfs", "minix", "vfat", "virtiofs"})
NAMES = FILESYSTEMS | {"raw", "nfs", "ssh", "net"}

_PATH = re.compile(r"/dev/[A-Za-z0-9._/:@+%=,~\\-]{1,200}")
# A label may be the folder that it was made for: LABEL=/boot is an example of RHEL's.
_TAG = re.compile(r"LABEL=[^\s\x00-\x1f]{1,64}|UUID=[^\s\x00-\x1f/]{1,64}")
_VIRTIOFS_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,35}")  # 36 bytes, virtio 1.2, 5.11.4
_LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_HOST = re.compile(rf"{_LABEL}(?:\.{_LABEL})*\.?")
_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}\$?")
_LONGEST_HOST = 253
_SSH_PORT = 22


def read_target(name: str, value: str) -> Target:
    """The target of the directive `name`, which is one of NAMES. Raises ValueError."""
    if any(char.isspace() or not char.isprintable() for char in value):
        raise ValueError(f"a target is one word, '{value}' has blanks in it")
    if value.startswith("-"):
        raise ValueError(f"'{value}' begins with a dash, as no target does")
    if name == "raw":
        return RawTarget(device=_device_path(value))
    if name == "nfs":
        return _nfs(value)
    if name == "ssh":
        return _ssh(value)
    if name == "net":  # as RHEL 6 had it: what it is shows in its form
        return _ssh(value) if "@" in value.partition(":/")[0] else _nfs(value)
    return LocalTarget(fstype=name, device=_filesystem_device(name, value))


def _filesystem_device(fstype: str, value: str) -> str:
    if fstype == "virtiofs":
        if not _VIRTIOFS_TAG.fullmatch(value):
            raise ValueError(f"'{value}' is not the tag of a virtiofs share: up to 36 letters, digits, '.', '_', '-'")
        return value
    if _TAG.fullmatch(value) and ".." not in value:
        return value
    if re.fullmatch(r"(?i)(label|uuid)=.+", value):
        key, _, rest = value.partition("=")
        if not key.isupper():
            raise ValueError(f"'{value}' names no device; did you mean '{key.upper()}={rest}'?")
    return _device_path(value, " LABEL=... or UUID=...")


def _device_path(value: str, others: str = "") -> str:
    if _PATH.fullmatch(value) and ".." not in value:
        return value
    use = f"use /dev/...{',' if others else ''}{others}"
    guess = f"; did you mean '/dev/{value}'?" if re.fullmatch(r"[a-z]+[a-z0-9]*", value) else ""
    raise ValueError(f"'{value}' names no device; {use}{guess}")


def _nfs(value: str) -> NfsTarget:
    server, separator, export = value.partition(":/")
    if not separator:
        guess = f"; did you mean 'ssh {value}'?" if "@" in value else ""
        raise ValueError(f"'{value}' is not a folder on a server; write nfs HOST:/EXPORT{guess}")
    if "@" in server:
        raise ValueError(f"'{server}' has a user in it, which NFS does not know; write nfs HOST:/EXPORT")
    if server.count(":") > 1 and not server.startswith("["):
        raise ValueError(f"an IPv6 address stands in brackets here; did you mean 'nfs [{server}]:/{export}'?")
    return NfsTarget(server=host_name(server), export=absolute_path(f"/{export}", "the folder that the server exports"))


def _ssh(value: str) -> SshTarget:
    user, at, rest = value.rpartition("@")
    if not at or not user:
        guess = f"; did you mean 'nfs {value}'?" if ":/" in value else f"; did you mean 'ssh root@{value}'?"
        raise ValueError(f"'{value}' is not an account on a server; write ssh USER@HOST or USER@HOST:PORT{guess}")
    if ":" in user:
        raise ValueError("a password has no place in kdump.conf: kdumpd uses a key, see sshkey")
    if not _USER.fullmatch(user):
        raise ValueError(f"'{user}' is not the name of a user")
    if "/" in rest:
        raise ValueError(f"'{rest}' has a path in it; the folder on the server is set with: path /FOLDER")
    host, port = rest, ""
    if rest.startswith("["):
        host, bracket, port = rest.partition("]")
        host += bracket
        if port and not port.startswith(":"):
            raise ValueError(f"'{port}' follows the address; write ssh USER@[ADDRESS]:PORT")
        port = port.removeprefix(":") if port else ""
        if rest.endswith("]:"):
            raise ValueError(f"'{rest}' ends where a port should stand")
    elif rest.count(":") == 1:
        host, _, port = rest.partition(":")
        if not port:
            raise ValueError(f"'{rest}' ends where a port should stand")
    return SshTarget(user=user, host=host_name(host), port=_port(port) if port else _SSH_PORT)


def _port(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,5}", text) or not 1 <= int(text) <= 65535:
        raise ValueError(f"'{text}' is not a port, a number from 1 to 65535")
    return int(text)


def host_name(text: str) -> str:
    """A name or an address, IPv6 with or without brackets; what is returned has none."""
    bare = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    if ":" in bare or bare != text:
        address, percent, scope = bare.partition("%")
        try:
            found = ipaddress.IPv6Address(address)
        except ValueError:
            raise ValueError(f"'{text}' is neither the name of a host nor an address") from None
        if percent and not re.fullmatch(r"[A-Za-z0-9_.-]{1,15}", scope):
            raise ValueError(f"'{scope}' is not the name of a network interface")
        return f"{found}{percent}{scope}"
    if len(bare) > _LONGEST_HOST or not _HOST.fullmatch(bare):
        raise ValueError(f"'{text}' is neither the name of a host nor an address")
    if re.fullmatch(r"[0-9.]+", bare):
        try:
            return str(ipaddress.IPv4Address(bare))
        except ValueError:
            raise ValueError(f"'{text}' is not an IPv4 address") from None
    return bare
