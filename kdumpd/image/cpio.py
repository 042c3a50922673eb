# SPDX-License-Identifier: GPL-2.0-or-later
"""The newc cpio archive the kernel unpacks (Documentation/driver-api/early-userspace/buffer-format.rst).

Written so that equal entries are equal bytes: sorted, times 0, inodes counted from 1, owner root. Read back
with every bound checked, because this reader is what proves an image before it is trusted.
"""

from __future__ import annotations

import dataclasses
import stat
from collections.abc import Iterable, Iterator

from kdumpd.errors import BuildError

_MAGIC = b"070701"
_HEADER = 110
_FIELDS = 13
_TRAILER = "TRAILER!!!"
_BLOCK = 512
_DAMAGED_HINT = "rebuild the image: kdumpctl rebuild"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One member: `mode` with the file type, `content` the bytes of a file or the target of a link."""

    path: str
    mode: int
    content: bytes = b""
    device: tuple[int, int] = (0, 0)

    @property
    def is_file(self) -> bool:
        """Whether this is a regular file."""
        return stat.S_ISREG(self.mode)


def write(entries: Iterable[Entry]) -> bytes:
    """The archive that holds `entries`, sorted by path so that a folder comes before what it holds."""
    parts: list[bytes] = []
    for inode, entry in enumerate(sorted(entries, key=lambda entry: entry.path), start=1):
        parts.extend(_member(entry, inode))
    parts.extend(_member(Entry(path=_TRAILER, mode=0), 0))
    size = sum(map(len, parts))
    parts.append(bytes(-size % _BLOCK))
    return b"".join(parts)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """An entry as it was read, with what tells hard links: the number of its file, and how many names that has."""

    entry: Entry
    inode: int
    links: int


def read(archive: bytes) -> Iterator[Entry]:
    """The members of `archive` in their order. Raises BuildError where it is not a whole newc archive."""
    listed, rest = members(archive)
    if any(rest):
        raise _damaged(f"there is something behind the trailer at byte {len(archive) - len(rest)}")
    return iter([member.entry for member in listed])


def members(archive: bytes) -> tuple[list[Member], bytes]:
    """The members of the archive at the beginning of `archive`, and what follows behind it. Raises BuildError."""
    view = memoryview(archive)
    found: list[Member] = []
    offset = 0
    while True:
        fields = _fields(view, offset)
        mode, size, name_size = fields[1], fields[6], fields[11]
        name_at = offset + _HEADER
        content_at = _aligned(name_at + name_size)
        end = content_at + size
        if name_size < 2 or end > len(view):
            raise _damaged(f"the member at byte {offset} reaches beyond the end")
        name = bytes(view[name_at : name_at + name_size])
        if not name.endswith(b"\0"):
            raise _damaged(f"the name of the member at byte {offset} does not end")
        path = name[:-1].decode(errors="surrogateescape")
        if path == _TRAILER:
            return found, bytes(view[end:])
        entry = Entry(path=path, mode=mode, content=bytes(view[content_at:end]), device=(fields[9], fields[10]))
        found.append(Member(entry=entry, inode=fields[0], links=fields[4]))
        offset = _aligned(end)


def _member(entry: Entry, inode: int) -> list[bytes]:
    name = entry.path.encode(errors="surrogateescape") + b"\0"
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    numbers = (inode, entry.mode, 0, 0, links, 0, len(entry.content), 0, 0, *entry.device, len(name), 0)
    header = _MAGIC + b"".join(b"%08x" % number for number in numbers)
    padding = bytes(-(_HEADER + len(name)) % 4)
    return [header, name, padding, entry.content, bytes(-len(entry.content) % 4)]


def _fields(view: memoryview, offset: int) -> list[int]:
    header = bytes(view[offset : offset + _HEADER])
    if len(header) < _HEADER:
        raise _damaged(f"it ends at byte {len(view)}, before its trailer")
    if not header.startswith(_MAGIC):
        raise _damaged(f"there is no member header at byte {offset}")
    try:
        return [int(header[6 + 8 * index : 14 + 8 * index], 16) for index in range(_FIELDS)]
    except ValueError:
        raise _damaged(f"the member header at byte {offset} is not hexadecimal") from None


def _aligned(offset: int) -> int:
    return (offset + 3) & ~3


def _damaged(what: str) -> BuildError:
    return BuildError(f"the capture image's archive is damaged: {what}", hint=_DAMAGED_HINT)
