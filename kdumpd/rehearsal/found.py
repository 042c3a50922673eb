# SPDX-License-Identifier: GPL-2.0-or-later
"""What a rehearsal left on the scratch disk, and whether that is the dump that was wanted. Trusts nothing in it."""

from __future__ import annotations

import shutil
import tarfile
from pathlib import Path, PurePosixPath

from kdumpd.crashes.index import Crash, Standing, read_crashes
from kdumpd.crashes.verify import verify
from kdumpd.dumpfile.check import verify_dump
from kdumpd.errors import KdumpError
from kdumpd.rehearsal.machine import StageError
from kdumpd.rehearsal.scratch import make_file

_FILES = 64  # more than a capture leaves


def unpack(archive: Path, folder: Path) -> None:
    """Makes `folder` (0700) of a tar archive of folders that hold files (0600); all else in it is left out.

    Raises StageError.
    """
    try:
        folder.mkdir(mode=0o700)
        with tarfile.open(archive, "r:") as tar:
            for number, member in enumerate(tar):
                parts = PurePosixPath(member.name).parts
                if not member.isreg() or len(parts) != 2 or ".." in parts:
                    continue
                if number > _FILES:
                    raise StageError("the scratch target holds more files than a capture leaves")
                (folder / parts[0]).mkdir(mode=0o700, exist_ok=True)
                reading = tar.extractfile(member)
                path = folder.joinpath(*parts)
                make_file(path, 0)
                with path.open("wb") as writing:
                    assert reading is not None  # of a regular file
                    shutil.copyfileobj(reading, writing, 1 << 20)
    except (OSError, tarfile.TarError) as error:
        raise StageError(f"what the capture left cannot be read: {error}") from error


def check(folder: Path, image_id: str, marker: str) -> Crash:
    """The one crash in `folder`, if it is complete, was made by the image `image_id` and has the log with `marker`.

    Raises StageError saying what it is not.
    """
    try:
        crashes = read_crashes(folder)
    except KdumpError as error:
        raise StageError(error.sentence) from error
    if len(crashes) != 1:
        raise StageError(f"the scratch target holds {len(crashes)} crashes instead of one")
    crash = crashes[0]
    manifest = crash.manifest
    if crash.standing is not Standing.COMPLETE or manifest is None or crash.dump is None:
        raise StageError(f"the dump is {crash.standing}: {crash.problem or 'no reason is given'}")
    if manifest.image_id != image_id:
        raise StageError(f"the dump was made by another image, {manifest.image_id}")
    problem = verify(crash)
    if problem is not None:
        raise StageError(f"the dump is not what was written: {problem}")
    if manifest.encrypted_to:
        return crash  # nobody here has the key; the collector read it back with that of the file
    try:
        # Kernels before 3.5 leave no log beside the dump.
        found = crash.log is None or marker.encode() in crash.log.read_bytes()
        verify_dump(crash.dump)
    except (KdumpError, OSError) as error:
        raise StageError(f"the dump cannot be read: {error}") from error
    if not found:
        raise StageError("the kernel log beside the dump is not that of the scratch machine")
    return crash
