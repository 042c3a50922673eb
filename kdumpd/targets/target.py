# SPDX-License-Identifier: GPL-2.0-or-later
"""What every place for dumps can do: the interface between the collector and local disks, raw devices, NFS and SSH.

A crash is a handful of files that get their final names only when their bytes are safe. A target makes room for one
crash as a `Store`; whatever connection, mount or lock that needs lasts as long as its `with` block, and an error at its
end means that nothing that was written counts.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol

from kdumpd.dumpfile.sink import Sink
from kdumpd.dumpfile.stored import Stored


class StoredFile(Sink, AbstractContextManager["StoredFile"], Protocol):
    """A new file of a crash; the end of its `with` block closes it, and raises what the target has to say then."""

    def truncate(self, size: int) -> None:
        """Cuts the file to `size` bytes."""


class Store(Protocol):
    """The files of one crash. Every method raises TargetError, or NoSpaceError where the target is full.

    `notes` are sentences for the manifest, on what this place cannot do.
    """

    notes: list[str]

    @property
    def where(self) -> str:
        """The place, for a person."""

    def create_file(self, name: str) -> StoredFile:
        """A new file that nobody else can read, an error when the name is taken."""

    def remove(self, name: str) -> None:
        """Takes a file away, which gives its room back; nothing when that fails."""

    def rename(self, old: str, new: str) -> None:
        """Gives a file its final name and makes that durable."""

    def sync(self) -> None:
        """Makes the names of the files durable."""

    def stored(self, name: str) -> Stored | None:
        """The file, to be read; None where there is no way back. Raises DumpFormatError."""

    def digest(self, name: str, offset: int, size: int) -> str | None:
        """The sha256 of a part of the file, as it is at the other end of a connection; None where nobody but this
        machine could tell."""


class Target(ABC):
    """One entry of the chain of targets; `name` is what a person calls it."""

    name: str

    @abstractmethod
    def open_crash(self, name: str, alive: Callable[[], None]) -> AbstractContextManager[Store]:
        """Reaches the target and makes a place for a crash there, called `name` or something like it if that is taken.

        Calls `alive` while it waits. Raises TargetError when the target cannot be reached or refuses.
        """
