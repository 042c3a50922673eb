# SPDX-License-Identifier: GPL-2.0-or-later
"""Which dumps may go, and their removal: keep_crashes and keep_days of kdump.conf(5).

Nothing goes unless it is asked for. The newest complete dump is never removed, nor what no manifest of kdumpd vouches
for: it may be somebody else's folder, or a capture that still tells something.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence

from kdumpd.config.model import Config
from kdumpd.crashes.index import Crash, Standing
from kdumpd.errors import TargetError, os_reason

_DAY_USEC = 24 * 3600 * 1_000_000


def expired(crashes: Sequence[Crash], config: Config, now_usec: int) -> tuple[tuple[Crash, str], ...]:
    """Those of `crashes` (oldest first) that are to go, oldest first, each with the reason."""
    complete = [crash for crash in crashes if crash.standing is Standing.COMPLETE]
    newest = complete[-1] if complete else None
    ours = [crash for crash in crashes if crash.manifest is not None]
    found: list[tuple[Crash, str]] = []
    for newer, crash in enumerate(reversed(ours)):
        if crash is newest:
            continue
        if config.keep_crashes is not None and newer >= config.keep_crashes:
            found.append((crash, f"keep_crashes {config.keep_crashes}"))
        elif config.keep_days is not None and crash.time_usec < now_usec - config.keep_days * _DAY_USEC:
            found.append((crash, f"keep_days {config.keep_days}"))
    return tuple(reversed(found))


def remove(crash: Crash) -> None:
    """Takes the folders of a crash away, whatever is in them; links are not followed. Raises TargetError."""
    for folder in (*crash.also, crash.path):  # the one that tells of the others last
        try:
            shutil.rmtree(folder)
        except OSError as error:
            raise TargetError(f"the dump in {folder} cannot be removed: {os_reason(error)}") from error
