# SPDX-License-Identifier: GPL-2.0-or-later
"""The pair that is loaded, kept aside: a newer build or an upgraded kernel package replaces the files it came from.

The image is kept by a second link, the kernel as a copy made through the descriptor that was loaded from (/boot is
often another filesystem). Names carry the sums of the content, so that the old pair is whole until the new one is.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
from pathlib import Path

from kdumpd.host.kexec_pair import OpenPair
from kdumpd.service.model import LoadedRecord
from kdumpd.service.places import Places

_NAME_DIGITS = 16
_PART = 64 << 10  # of memory, and of the time that Python's own SHA-256 keeps all other threads waiting


def keep(places: Places, record: LoadedRecord, opened: OpenPair, kernel_sha256: str = "") -> LoadedRecord:
    """`record` with the names of the kept files; with those of the originals where keeping them does not work.

    `kernel_sha256` is the sum of the opened kernel where it is known: a copy that is there is not made again then.
    """
    folder = places.kept_dir
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        initrd = folder / f"initrd-{record.initrd_sha256[:_NAME_DIGITS]}"
        if not initrd.exists():
            os.link(record.initrd, initrd)
        kernel = _name(folder, kernel_sha256)
        if not kernel_sha256 or not _has_size(kernel, os.fstat(opened.kernel_fd).st_size):
            kernel, kernel_sha256 = _copy(opened.kernel_fd, folder)
    except OSError:
        return record
    return dataclasses.replace(record, initrd=str(initrd), kernel=str(kernel), kernel_sha256=kernel_sha256)


def prune(places: Places, record: LoadedRecord) -> None:
    """Removes what is kept but the pair of `record`."""
    with contextlib.suppress(OSError):
        for path in places.kept_dir.iterdir():
            if str(path) not in (record.kernel, record.initrd):
                path.unlink()


def _name(folder: Path, sha256: str) -> Path:
    return folder / f"kernel-{sha256[:_NAME_DIGITS]}"


def _has_size(path: Path, size: int) -> bool:
    """A copy gets its name when all of it is on the disk; the loader compares its sum before it is used."""
    try:
        return path.stat().st_size == size
    except OSError:
        return False


def _copy(fd: int, folder: Path) -> tuple[Path, str]:
    """Copies the file behind `fd`; its new name and sum. Raises OSError."""
    temporary = folder / ".kernel.new"
    temporary.unlink(missing_ok=True)
    digest = hashlib.sha256()
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with open(handle, "wb") as copy:
        offset = 0
        while part := os.pread(fd, _PART, offset):
            offset += len(part)
            digest.update(part)
            copy.write(part)
        copy.flush()
        os.fsync(copy.fileno())
    path = _name(folder, digest.hexdigest())
    temporary.rename(path)
    return path, digest.hexdigest()
