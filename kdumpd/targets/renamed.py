# SPDX-License-Identifier: GPL-2.0-or-later
"""A target on which some files are called otherwise, and that gets links beside them (config.layout)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping

from kdumpd.dumpfile.manifest import ENCRYPTED_SUFFIX
from kdumpd.dumpfile.stored import Stored
from kdumpd.errors import TargetError
from kdumpd.targets.files import CrashDirectory
from kdumpd.targets.target import Store, StoredFile, Target


class RenamedTarget(Target):
    """`target`, whose files are called what `names` says; `links` are made where the filesystem has such."""

    def __init__(self, target: Target, names: Mapping[str, str], links: Mapping[str, str]) -> None:
        self.name = target.name
        self._target = target
        self._names = names
        self._links = links

    @contextlib.contextmanager
    def open_crash(self, name: str, alive: Callable[[], None]) -> Iterator[Store]:
        """As Target.open_crash."""
        with self._target.open_crash(name, alive) as store:
            if isinstance(store, CrashDirectory):
                for link, place in self._links.items():
                    with contextlib.suppress(TargetError):  # vfat has none; a dump is as good without
                        store.link(link, place)
            yield _RenamedStore(store, self._names)


class _RenamedStore:
    """The files of one crash, by kdumpd's names (Store)."""

    def __init__(self, store: Store, names: Mapping[str, str]) -> None:
        self._store = store
        self._names = names
        self.notes = store.notes

    def _real(self, name: str) -> str:
        plain = name.removesuffix(ENCRYPTED_SUFFIX)
        return self._names.get(plain, plain) + name[len(plain) :]

    @property
    def where(self) -> str:
        """The place, for a person."""
        return self._store.where

    def create_file(self, name: str) -> StoredFile:
        """As Store.create_file, and so are the others."""
        return self._store.create_file(self._real(name))

    def remove(self, name: str) -> None:
        self._store.remove(self._real(name))

    def rename(self, old: str, new: str) -> None:
        self._store.rename(self._real(old), self._real(new))

    def sync(self) -> None:
        self._store.sync()

    def stored(self, name: str) -> Stored | None:
        return self._store.stored(self._real(name))

    def digest(self, name: str, offset: int, size: int) -> str | None:
        return self._store.digest(self._real(name), offset, size)
