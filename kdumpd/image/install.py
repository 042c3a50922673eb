# SPDX-License-Identifier: GPL-2.0-or-later
"""Puts a packed image and its record in the place of the ones that are there, so that a whole pair is there always."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from kdumpd.errors import BuildError, BusyError, os_reason
from kdumpd.image import verify
from kdumpd.image.record import INITRD_NAME, NEW_RECORD_NAME, RECORD_NAME, ImageRecord, is_half_renamed

_NEW_INITRD_NAME = "initrd.new"


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Makes `folder` (0700) and keeps other builds out of it until the block ends. Raises BuildError, BusyError."""
    try:
        if not folder.is_dir():
            folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            folder.mkdir(mode=0o700, exist_ok=True)
        _require_private(folder)
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise BuildError(
            f"the folder {folder} cannot be made: {os_reason(error)}",
            hint=f"ls -ld {folder.parent}; df -h {folder.parent}",
        ) from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise BusyError(
                f"another build of the capture image in {folder} is under way", hint="wait for it to end"
            ) from error
        _finish_renames(folder)
        yield
    finally:
        os.close(handle)


def _require_private(folder: Path) -> None:
    """Closes `folder` to others. Raises OSError; BuildError where that does not help.

    vfat says of a chmod that it cannot keep that all went well (fat_setattr in fs/fat/file.c).
    """
    trouble: OSError | None = None
    try:
        if stat.S_IMODE(folder.stat().st_mode) != 0o700:
            folder.chmod(0o700)
    except PermissionError as error:
        trouble = error
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.EOPNOTSUPP):
            raise
        trouble = error
    if stat.S_IMODE(folder.stat().st_mode) & 0o077:
        raise BuildError(
            f"everybody could read the capture image in {folder}: that filesystem keeps no modes",
            hint="choose a folder on another filesystem, ext4 say",
        ) from trouble


def install(folder: Path, record: ImageRecord, packed: bytes, *, stock_checked: bool) -> None:
    """Writes the image beside the one that is there, checks it (`verify.check_packed`), and puts it in place.

    Raises BuildError.
    """
    new_initrd, new_record = folder / _NEW_INITRD_NAME, folder / NEW_RECORD_NAME
    try:
        _write(new_initrd, packed)
        _write(new_record, record.to_json().encode())
        written = new_initrd.read_bytes()
        if hashlib.sha256(written).hexdigest() != record.packed_sha256:
            raise BuildError(f"{new_initrd} does not read back as it was written", hint="check the disk")
        verify.check_packed(written, record, stock_checked=stock_checked)
        # The image first: its record is found under either name, see read_record.
        os.rename(new_initrd, folder / INITRD_NAME)
        os.rename(new_record, folder / RECORD_NAME)
        _sync_folder(folder)
    except OSError as error:
        raise BuildError(
            f"the capture image cannot be written to {folder}: {os_reason(error)}", hint=f"df -h {folder}"
        ) from error
    finally:
        for path in (new_initrd, new_record):
            with contextlib.suppress(OSError):  # what went wrong is on its way already
                path.unlink(missing_ok=True)


def _finish_renames(folder: Path) -> None:
    """Completes what a build that was killed had all but done."""
    try:
        if is_half_renamed(folder):
            os.rename(folder / NEW_RECORD_NAME, folder / RECORD_NAME)
            _sync_folder(folder)
    except OSError as error:
        raise BuildError(f"the folder {folder} cannot be written: {os_reason(error)}") from error


def _write(path: Path, data: bytes) -> None:
    path.unlink(missing_ok=True)  # left by a build that was killed
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with open(handle, "wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
