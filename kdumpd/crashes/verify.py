# SPDX-License-Identifier: GPL-2.0-or-later
"""Are the files of a crash still the bytes that the collector wrote? Reads all of them once; changes nothing."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path

from kdumpd.crashes.index import Crash, Standing
from kdumpd.dumpfile.manifest import LOG_NAME, FileRecord
from kdumpd.errors import os_reason

_PIECE_BYTES = 64 << 10  # the service, which does this too, has little memory, and answers while it does


def verify(crash: Crash) -> str | None:
    """What is wrong with the files that the manifest promises; None when they are whole.

    A file without a checksum is compared by its size alone.
    """
    manifest = crash.manifest
    if crash.standing is Standing.DAMAGED or manifest is None:
        return crash.problem or "there is no manifest to check against"
    if manifest.dump is not None and crash.dump is not None and crash.standing is Standing.COMPLETE:
        problem = _check(crash.dump, manifest.dump)
        if problem is not None:
            return problem
    if manifest.log is None:
        return None
    return _check(crash.log or crash.path / LOG_NAME, manifest.log)


def _check(path: Path, record: FileRecord) -> str | None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                return f"{path.name} is no file"
            if status.st_size != record.size_bytes:
                return f"{path.name} has {status.st_size} bytes, the manifest says {record.size_bytes}"
            return _check_sums(descriptor, path.name, record)
        finally:
            os.close(descriptor)
    except OSError as error:
        return f"{path.name} cannot be read: {os_reason(error)}"


def _check_sums(descriptor: int, name: str, record: FileRecord) -> str | None:
    if record.sha256 is not None and _sum(descriptor, 0, record.size_bytes) != record.sha256:
        return f"{name} is not what was written: its checksum differs"
    at = 0
    for region in record.regions:
        if region.offset != at or region.size_bytes < 0:
            return f"the manifest's checksums of {name} leave a gap at byte {at}"
        at += region.size_bytes
        if _sum(descriptor, region.offset, region.size_bytes) != region.sha256:
            return f"{name} is not what was written: the checksum of bytes {region.offset} to {at} differs"
    if record.regions and at != record.size_bytes:
        return f"the manifest's checksums of {name} end at byte {at}, the file at {record.size_bytes}"
    return None


def _sum(descriptor: int, offset: int, size_bytes: int) -> str:
    """sha256 of a part of the file, whose pages are not left in the cache: a dump may be larger than memory."""
    digest = hashlib.sha256()
    left = size_bytes
    while left > 0:
        piece = os.pread(descriptor, min(left, _PIECE_BYTES), offset)
        if not piece:
            break
        digest.update(piece)
        os.posix_fadvise(descriptor, offset, len(piece), os.POSIX_FADV_DONTNEED)
        offset += len(piece)
        left -= len(piece)
    return digest.hexdigest()
