# SPDX-License-Identifier: GPL-2.0-or-later
"""The header of a LUKS volume, as far as it says how the data behind it is encrypted; passphrases are not looked at.

Sources: LUKS On-Disk Format Specification 1.2.3; LUKS2 On-Disk Format Specification 1.1.3. Both kernels read it: the
first one to refuse what the second could not open, the second to make the mapping, since the header may have changed
between.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import struct
from collections.abc import Callable
from typing import Any

from kdumpd.errors import TargetError, UnsupportedError

HEADER_BYTES = 4096
_MAGIC = b"LUKS\xba\xbe"
_UUID = slice(168, 208)  # the same place in both versions
_SECTOR = 512
# Of the binary header and its JSON together (LUKS2, 3.1.1).
_SIZES = frozenset(0x4000 << shift for shift in range(9))
_CSUM = slice(448, 512)
_LUKS1 = struct.Struct(">6xH32s32s32sII")  # version, cipher, mode, hash, payload offset (sectors), bytes of the key
_LUKS2 = struct.Struct(">6xHQQ48s32s")  # version, size, sequence, label, checksum's algorithm
# It becomes a word of a device-mapper table.
_CIPHER = re.compile(r"[A-Za-z0-9_:().,=+-]+")
_SECTOR_SIZES = (512, 1024, 2048, 4096)

Read = Callable[[int, int], bytes]  # offset and size, in bytes


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Volume:
    """How the data is encrypted. `offset_bytes` is where it begins on the device; `size_bytes` None up to its end.
    `iv_sectors` is the number of the first sector (of 512 bytes) for the cipher."""

    cipher: str
    key_bytes: int
    offset_bytes: int
    size_bytes: int | None
    iv_sectors: int
    sector_bytes: int


def uuid_of(header: bytes) -> str | None:
    """The UUID of the LUKS volume that begins with `header` (HEADER_BYTES); None when none does."""
    if len(header) < HEADER_BYTES or not header.startswith(_MAGIC):
        return None
    return header[_UUID].partition(b"\0")[0].decode("ascii", errors="replace")


def reader(fd: int) -> Read:
    """For `read_volume`: of an open block device."""
    return lambda offset, size: os.pread(fd, size, offset)


def read_volume(read: Read, uuid: str) -> Volume:
    """What the header says of the volume `uuid`. Raises TargetError when there is no such header or it is damaged,
    UnsupportedError for what only cryptsetup knows to open."""
    header = read(0, HEADER_BYTES)
    if uuid_of(header) != uuid:
        raise TargetError(
            f"the encrypted volume {uuid} has no LUKS header at its beginning",
            hint="a volume whose header lies elsewhere cannot be a target: name another one in /etc/kdump.conf",
        )
    (version,) = struct.unpack_from(">H", header, 6)
    try:
        if version == 1:
            return _checked(_luks1(header), uuid)
        if version == 2:
            return _checked(_luks2(_json(read, header, uuid), uuid), uuid)
    except (ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise _damaged(uuid) from error
    raise _unknown(uuid, f"version {version} of LUKS")


def _luks1(header: bytes) -> Volume:
    _, cipher, mode, _, sectors, key_bytes = _LUKS1.unpack_from(header)
    return Volume(
        cipher=f"{_text(cipher)}-{_text(mode)}",
        key_bytes=key_bytes,
        offset_bytes=sectors * _SECTOR,
        size_bytes=None,
        iv_sectors=0,
        sector_bytes=_SECTOR,
    )


def _json(read: Read, header: bytes, uuid: str) -> dict[str, Any]:
    """The JSON behind the header, once the checksum over both is right."""
    _, size, _, _, algorithm = _LUKS2.unpack_from(header)
    if size not in _SIZES:
        raise _damaged(uuid)
    area = bytearray(read(0, size))
    said = bytes(area[_CSUM])
    area[_CSUM] = bytes(64)
    found = hashlib.new(_text(algorithm), area).digest()
    if len(area) != size or said[: len(found)] != found:
        raise _damaged(uuid)
    raw = json.loads(bytes(area[HEADER_BYTES:]).partition(b"\0")[0])
    if not isinstance(raw, dict):
        raise _damaged(uuid)
    return raw


def _luks2(raw: dict[str, Any], uuid: str) -> Volume:
    if wanted := raw["config"].get("requirements", {}).get("mandatory"):
        raise _unknown(uuid, f"the requirements {', '.join(map(str, wanted))}")
    if len(raw["segments"]) != 1:
        raise _unknown(uuid, f"{len(raw['segments'])} segments, so that it is being encrypted anew")
    ((name, segment),) = raw["segments"].items()
    if segment["type"] != "crypt":
        raise _unknown(uuid, f"a segment of type {segment['type']}")
    if "integrity" in segment:
        raise _unknown(uuid, "integrity protection (dm-integrity)")
    slots = {slot for digest in raw["digests"].values() if name in digest["segments"] for slot in digest["keyslots"]}
    sizes = {raw["keyslots"][slot]["key_size"] for slot in slots}
    if len(sizes) != 1:
        raise _unknown(uuid, "no key slot" if not sizes else "keys of several sizes")
    size = segment["size"]
    return Volume(
        cipher=segment["encryption"],
        key_bytes=int(sizes.pop()),
        offset_bytes=int(segment["offset"]),
        size_bytes=None if size == "dynamic" else int(size),
        iv_sectors=int(segment["iv_tweak"]),
        sector_bytes=int(segment["sector_size"]),
    )


def _checked(volume: Volume, uuid: str) -> Volume:
    good = (
        _CIPHER.fullmatch(volume.cipher) is not None
        and 0 < volume.key_bytes <= 256  # KEY_SIZE_MAX of kernel/crash_dump_dm_crypt.c
        and volume.offset_bytes > 0
        and volume.offset_bytes % _SECTOR == 0
        and (volume.size_bytes is None or (volume.size_bytes > 0 and volume.size_bytes % _SECTOR == 0))
        and volume.iv_sectors >= 0
        and volume.sector_bytes in _SECTOR_SIZES
    )
    if not good:
        raise _unknown(uuid, f"data encrypted in a way that the kernel is not handed the key of ({volume.cipher})")
    return volume


def _text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode("ascii")


def _damaged(uuid: str) -> TargetError:
    return TargetError(
        f"the LUKS header of the encrypted volume {uuid} is damaged",
        hint="cryptsetup luksDump shows what is there; cryptsetup repair may mend it",
    )


def _unknown(uuid: str, what: str) -> UnsupportedError:
    return UnsupportedError(
        f"the encrypted volume {uuid} has {what}, which the capture image of this kdumpd cannot open",
        hint="name another target in /etc/kdump.conf, for example: ext4 UUID=...",
    )
