# SPDX-License-Identifier: GPL-2.0-or-later
"""Checks a dump in whatever format it is, by how it begins."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from kdumpd.dumpfile.reader import SAMPLE, verify
from kdumpd.dumpfile.stored import PlainFile, open_stored
from kdumpd.vmcore.arrays import NDArray
from kdumpd.vmcore.memory import CrashedMemory

if TYPE_CHECKING:
    from kdumpd.dumpfile.sealed import FileKey


def verify_dump(
    path: Path,
    *,
    sample: int | None = SAMPLE,
    memory: CrashedMemory | None = None,
    needed: Mapping[str, NDArray[np.int64]] | None = None,
    unreadable: Collection[int] = (),
    find_key: FileKey | None = None,
) -> int:
    """As reader.verify, for every format. Pages of an ELF core in a stream are not looked at: their number is 0."""
    with contextlib.closing(open_stored(path, find_key)) as file:
        if file.read_at(0, 4) != b"\x7fELF":
            return verify(path, sample=sample, memory=memory, needed=needed, unreadable=unreadable, find_key=find_key)
        from kdumpd.dumpfile.elfcheck import check_headers, check_pages

        check_headers(file)
        if memory is None or not isinstance(file, PlainFile):
            return 0
        return check_pages(path, sample=sample, memory=memory, needed=needed or {}, unreadable=unreadable)
