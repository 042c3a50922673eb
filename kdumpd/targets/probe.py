# SPDX-License-Identifier: GPL-2.0-or-later
"""Tries a target while the machine is well, with the code that will capture: makes a folder, writes a file, makes it
durable, reads it back, renames it, and takes all of it away."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable
from typing import Protocol, runtime_checkable

from kdumpd.errors import KdumpError, TargetError
from kdumpd.targets.target import Target

_SIZE = 256 << 10


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Probed:
    """Of a target that works: sentences on what it cannot do, and the bytes that could be written there, None where
    there is no way to know."""

    notes: tuple[str, ...]
    free_bytes: int | None


@runtime_checkable
class Disposable(Protocol):
    """A Store whose folder can be taken away again, once it is empty."""

    def discard(self) -> None:
        """Takes it away; nothing when that fails."""


def probe_target(target: Target, alive: Callable[[], None]) -> Probed:
    """Raises the error that a capture would meet."""
    name = f"kdumpd-probe-{os.urandom(6).hex()}"
    data = os.urandom(_SIZE)
    with target.open_crash(name, alive) as store:
        try:
            with store.create_file("probe.incomplete") as file:
                file.write_at(0, data)
                file.sync()
                free = file.free_bytes()
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
        return Probed(notes=tuple(store.notes), free_bytes=free)
