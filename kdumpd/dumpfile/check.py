# SPDX-License-Identifier: GPL-2.0-or-later
"""Checks a dump in whatever format it is, by how it begins."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np

from kdumpd.dumpfile.reader import SAMPLE, verify
from kdumpd.dumpfile.stored import PlainFile, Stored, open_stored
from kdumpd.vmcore.arrays import NDArray
from kdumpd.vmcore.memory import CrashedMemory


def verify_dump(
    place: Path | Stored,
    *,
    sample: int | None = SAMPLE,
    memory: CrashedMemory | None = None,
    needed: Mapping[str, NDArray[np.int64]] | None = None,
    unreadable: Collection[int] = (),
) -> int:
    """As reader.verify, for every format. Of an ELF core that is no file of this machine, or lies in a stream, no pages
    are looked at: their number is 0."""
    with contextlib.closing(open_stored(place) if isinstance(place, Path) else place) as file:
        if file.read_at(0, 4) != b"\x7fELF":
            return verify(file, sample=sample, memory=memory, needed=needed, unreadable=unreadable)
        from kdumpd.dumpfile.elfcheck import check_headers, check_pages

        check_headers(file)
        if memory is None or not isinstance(file, PlainFile):
            return 0
        return check_pages(Path(file.name), sample=sample, memory=memory, needed=needed or {}, unreadable=unreadable)
