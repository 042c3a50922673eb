# SPDX-License-Identifier: GPL-2.0-or-later
"""What a raw device holds: crashes as runs of bytes, and a table of contents that is never half written.

docs/FORMATS.md has the layout. Two slots at the beginning take turns: the newest whole one counts, so that a cut while
one is written leaves the other. A file is in the table only when its bytes are on the disk.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import struct
from typing import Any

from kdumpd.config.targets import RAW_MAGIC

SLOT_BYTES = 64 << 10
DATA_AT = 2 * SLOT_BYTES
ALIGN = 4096
_HEAD = struct.Struct(f"<{len(RAW_MAGIC)}sQI32s")  # magic, sequence, length of the text, sha256
_NUMBERS = struct.Struct("<QI")
_VERSION = 1


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RawFile:
    """A file of a crash: `size_bytes` from `offset` on, both counted on the device. Small ones have a checksum."""

    name: str
    offset: int
    size_bytes: int
    sha256: str | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RawCrash:
    """One crash, under the name that its folder would have."""

    name: str
    files: tuple[RawFile, ...]

    @property
    def end(self) -> int:
        """Where the room behind it begins."""
        return max((rounded(file.offset + file.size_bytes) for file in self.files), default=DATA_AT)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """The table of contents, written for the `sequence`th time."""

    sequence: int
    crashes: tuple[RawCrash, ...] = ()

    @property
    def end(self) -> int:
        """Where the room behind all crashes begins."""
        return max((crash.end for crash in self.crashes), default=DATA_AT)

    @property
    def slot(self) -> int:
        """Where on the device it is written."""
        return self.sequence % 2 * SLOT_BYTES


def rounded(size: int) -> int:
    """`size` up to the next whole block."""
    return -(-size // ALIGN) * ALIGN


def encode(contents: Contents) -> bytes:
    """One slot. Raises ValueError when the table has become too long for it."""
    crashes = [dataclasses.asdict(crash) for crash in contents.crashes]
    text = json.dumps({"version": _VERSION, "crashes": crashes}, separators=(",", ":"), sort_keys=True).encode()
    if _HEAD.size + len(text) > SLOT_BYTES:
        raise ValueError("too many crashes for the table of contents")
    numbers = _NUMBERS.pack(contents.sequence, len(text))
    digest = hashlib.sha256(numbers + text).digest()
    head = _HEAD.pack(RAW_MAGIC, contents.sequence, len(text), digest)
    return (head + text).ljust(SLOT_BYTES, b"\0")


def decode(slot: bytes) -> Contents | None:
    """What `encode` made; None for anything else."""
    if len(slot) < _HEAD.size:
        return None
    magic, sequence, length, digest = _HEAD.unpack_from(slot)
    text = slot[_HEAD.size : _HEAD.size + length]
    if magic != RAW_MAGIC or hashlib.sha256(_NUMBERS.pack(sequence, length) + text).digest() != digest:
        return None
    try:
        raw = json.loads(text)
        if raw["version"] != _VERSION:
            return None
        return Contents(sequence=sequence, crashes=tuple(map(_crash, raw["crashes"])))
    except (ValueError, KeyError, TypeError):
        return None


def newest(first: bytes, second: bytes) -> Contents | None:
    """The table that counts of both slots; None when neither is ours."""
    found = [contents for contents in (decode(first), decode(second)) if contents is not None]
    return max(found, key=lambda contents: contents.sequence, default=None)


def _crash(raw: dict[str, Any]) -> RawCrash:
    return RawCrash(name=_name(raw["name"]), files=tuple(map(_file, raw["files"])))


def _file(raw: dict[str, Any]) -> RawFile:
    offset, size, sha256 = raw["offset"], raw["size_bytes"], raw["sha256"]
    if not (isinstance(offset, int) and isinstance(size, int) and offset >= DATA_AT and size >= 0):
        raise ValueError(f"a file at {offset!r} of {size!r} bytes")
    if not isinstance(sha256, str | None):
        raise TypeError("a checksum is not text")
    return RawFile(name=_name(raw["name"]), offset=offset, size_bytes=size, sha256=sha256)


def _name(text: object) -> str:
    """A name that is one part of a path: whoever can write the disk must not choose where its files go."""
    if not isinstance(text, str) or not text or text.startswith(".") or "/" in text or not text.isprintable():
        raise ValueError(f"{text!r} is not a name")
    return text
