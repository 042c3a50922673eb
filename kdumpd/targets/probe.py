# SPDX-License-Identifier: GPL-2.0-or-later
"""Tries a target while the machine is well, with the code that will capture: makes a folder, writes a file, makes it
durable, reads it back, renames it, and takes all of it away."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from typing import Protocol, runtime_checkable

from kdumpd.errors import KdumpError, TargetError
from kdumpd.targets.target import Target

_SIZE = 256 << 10


@runtime_checkable
class Disposable(Protocol):
    """A Store whose folder can be taken away again, once it is empty."""

    def discard(self) -> None:
        """Takes it away; nothing when that fails."""


def probe_target(target: Target, alive: Callable[[], None]) -> list[str]:
    """Raises the error that a capture would meet. Returns sentences on what this target cannot do."""
    name = f"kdumpd-probe-{os.urandom(6).hex()}"
    data = os.urandom(_SIZE)
    with target.open_crash(name, alive) as store:
        try:
            with store.create_file("probe.incomplete") as file:
                file.write_at(0, data)
                file.sync()
            stored = store.stored("probe.incomplete")
            if stored is not None:
                with contextlib.closing(stored):
                    if stored.size != len(data) or stored.read_at(0, len(data)) != data:
                        raise TargetError(f"{target.name} does not give back what was written to it")
            store.rename("probe.incomplete", "probe")
        finally:
            with contextlib.suppress(KdumpError):
                store.remove("probe.incomplete")
                store.remove("probe")
                if isinstance(store, Disposable):
                    store.discard()
        return list(store.notes)
