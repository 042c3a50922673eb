# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether a dump made of a damaged core is what it says: incomplete if the core was cut, and sound either way."""

from __future__ import annotations

from pathlib import Path

from kdumpd.dumpfile.diskdump import STATUS_OFFSET, Status
from kdumpd.dumpfile.reader import DiskdumpReader, verify


def check(path: Path, *, incomplete: bool) -> None:
    """Raises when the dump at `path` does not say so, or when it would not pass the check without saying so."""
    with DiskdumpReader(path) as dump:
        assert dump.incomplete is incomplete, path
    if incomplete:
        with path.open("r+b") as file:
            file.seek(STATUS_OFFSET)
            status = file.read(1)[0]
            file.seek(STATUS_OFFSET)
            file.write(bytes([status & ~int(Status.INCOMPLETE)]))
    verify(path)
