# SPDX-License-Identifier: GPL-2.0-or-later
"""Reads the images that other tools make: several archives behind each other, packed or not, with hard links.

What the kernel takes is described in Documentation/driver-api/early-userspace/buffer-format.rst.
"""

from __future__ import annotations

import stat
import zlib

from kdumpd.errors import BuildError
from kdumpd.image import pack
from kdumpd.image.cpio import Entry, Member, members

_LIMIT = 1 << 30
_ZSTD, _GZIP, _NEWC = b"\x28\xb5\x2f\xfd", b"\x1f\x8b", b"07070"


def read(image: bytes, tool: str) -> dict[str, Entry]:
    """The entries of an image by path, without the folder they all lie in. Raises BuildError naming `tool`."""
    found: dict[str, Entry] = {}
    while image := image.lstrip(b"\0"):
        if image.startswith(_NEWC):
            listed, image = members(image)
            found |= _linked(listed)
        else:
            image = _unpacked(image, tool)
    if not found:
        raise BuildError(f"{tool} made an image without any file", hint=f"install {tool} again")
    return found


def _linked(listed: list[Member]) -> dict[str, Entry]:
    """Members by path. Of files with several names only the last one has the content (cpio(5), newc): here the first
    has it, and the others are symbolic links, so that memory holds it once.
    """
    contents = {member.inode: member.entry.content for member in listed if member.entry.content}
    first: dict[int, str] = {}
    found = {}
    for member in listed:
        entry = member.entry
        path = entry.path.removeprefix("./").strip("/")
        if path in ("", "."):
            continue
        mode, content = entry.mode, entry.content
        if stat.S_ISREG(mode) and member.links > 1:
            content = contents.get(member.inode, b"")
            if first.setdefault(member.inode, path) != path:
                mode, content = stat.S_IFLNK | 0o777, f"/{first[member.inode]}".encode(errors="surrogateescape")
        found[path] = Entry(path=path, mode=mode, content=content, device=entry.device)
    return found


def _unpacked(image: bytes, tool: str) -> bytes:
    zstandard = pack.load_zstandard()
    try:
        if image.startswith(_ZSTD):
            unpacked: bytes = zstandard.ZstdDecompressor().decompressobj().decompress(image)
            return unpacked
        if image.startswith(_GZIP):
            return zlib.decompressobj(wbits=31).decompress(image, _LIMIT)
    except (zstandard.ZstdError, zlib.error) as error:
        raise BuildError(f"{tool} made an image that does not unpack: {error}", hint=f"install {tool} again") from error
    raise BuildError(
        f"{tool} packed its image in a way that kdumpd does not read", hint="builder busybox needs no tool"
    )
