# SPDX-License-Identifier: GPL-2.0-or-later
"""Encrypts every file of a crash on its way to a target, whatever target it is.

Whoever writes to a Store writes to this one in the same way: its files get the suffix .age, a dump becomes an age file
with a flattened dump in it, and the manifest is written twice: whole and encrypted, and in the clear without any word
that could have come out of the memory. Without the library nothing but that second manifest is written.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Self

from kdumpd.config.age_keys import recipient_key
from kdumpd.dumpfile.codecs import Buffer
from kdumpd.dumpfile.manifest import ENCRYPTED_SUFFIX, MANIFEST_NAME, FileRecord, Manifest
from kdumpd.dumpfile.sealed import FileKey, FileStream, SealedStream, known_key
from kdumpd.dumpfile.sealed_sink import SealedSink
from kdumpd.dumpfile.stored import Stored, decoded
from kdumpd.errors import KdumpError, UnsupportedError
from kdumpd.targets.target import Store, StoredFile, Target

# Everything else is a dump. If one of them were flattened, `kdumpctl decrypt` would notice and do the right thing.
_TEXTS = (".txt", ".log", ".json")


class SealedTarget(Target):
    """A target whose crashes are encrypted to `recipients` (age1...)."""

    def __init__(self, target: Target, recipients: Sequence[str]) -> None:
        self.name = target.name
        self._target = target
        self._recipients = tuple(recipients)

    @contextlib.contextmanager
    def open_crash(self, name: str, alive: Callable[[], None]) -> Iterator[Store]:
        """As Target.open_crash."""
        with self._target.open_crash(name, alive) as store:
            yield SealedStore(store, self._recipients)


class SealedStore:
    """The files of one crash, by their names without the suffix (Store)."""

    def __init__(self, store: Store, recipients: tuple[str, ...]) -> None:
        self._store = store
        self._recipients = recipients
        self._files: dict[str, _SealedDump | _SealedText] = {}
        self.notes = store.notes

    @property
    def where(self) -> str:
        """The place, for a person."""
        return self._store.where

    def create_file(self, name: str) -> StoredFile:
        """A new file that is encrypted; for the manifest, one that is not, and one beside it that is."""
        if name.startswith(MANIFEST_NAME):
            return _ClearManifest(self._store.create_file(name), self._cleared)
        file = self._store.create_file(name + ENCRYPTED_SUFFIX)
        try:
            sealed = (_SealedText if name.endswith(_TEXTS) else _SealedDump)(file, self._recipients)
        except BaseException:
            with contextlib.suppress(KdumpError), file:
                pass
            self.remove(name)
            raise
        self._files[name] = sealed
        return sealed

    def remove(self, name: str) -> None:
        """Takes a file away; nothing when that fails."""
        self._files.pop(name, None)
        self._store.remove(name + ENCRYPTED_SUFFIX)

    def rename(self, old: str, new: str) -> None:
        """Gives a file its final name and makes that durable. Whoever could still read it, can no longer."""
        if old.startswith(MANIFEST_NAME):
            self._store.rename(old, new)
            return
        self._store.rename(old + ENCRYPTED_SUFFIX, new + ENCRYPTED_SUFFIX)
        file = self._files.pop(old, None)
        if file is not None:
            file.forget()
            self._files[new] = file

    def sync(self) -> None:
        """Makes the names of the files durable."""
        self._store.sync()

    def stored(self, name: str) -> Stored | None:
        """The file as it was before it was encrypted, as long as it has not got its final name; None where there is no
        way back. Raises DumpFormatError."""
        find_key = self._files[name].find_key if name in self._files else None
        file = None if find_key is None else self._store.stored(name + ENCRYPTED_SUFFIX)
        if file is None:
            return None
        try:
            return decoded(file, find_key)
        except BaseException:
            file.close()
            raise

    def digest(self, name: str, offset: int, size: int) -> str | None:
        """The sha256 of a part of the encrypted file."""
        return self._store.digest(name + ENCRYPTED_SUFFIX, offset, size)

    def _cleared(self, manifest: Manifest) -> Manifest:
        """Saves all of the manifest encrypted; what of it may be read by everybody."""
        whole = dataclasses.replace(
            manifest, dump=self._record(manifest.dump), log=self._record(manifest.log), encrypted_to=self._recipients
        )
        notes: tuple[str, ...] = ()
        try:
            with self._store.create_file(MANIFEST_NAME + ENCRYPTED_SUFFIX) as file:
                text = _SealedText(file, self._recipients)
                text.write_at(0, whole.to_json().encode())
                text.end()
        except KdumpError as error:
            self._store.remove(MANIFEST_NAME + ENCRYPTED_SUFFIX)
            notes = (f"the whole manifest was not saved: {error}",)
        cleared = whole.without_memory()
        return dataclasses.replace(cleared, notes=(*cleared.notes, *notes))

    def _record(self, record: FileRecord | None) -> FileRecord | None:
        """The facts of the file that is there, of which nothing can be learned about what is in it."""
        if record is None:
            return None
        file = self._files.get(record.name)
        name = record.name + ENCRYPTED_SUFFIX
        if file is None:
            return FileRecord(name=name, size_bytes=0)
        return FileRecord(name=name, size_bytes=file.stream.sent, sha256=file.stream.sha256)


class _SealedDump(SealedSink):
    """A dump, flattened and encrypted, in a file of the target."""

    def __init__(self, file: StoredFile, recipients: Sequence[str]) -> None:
        self._file = file
        self.stream = FileStream(file)
        super().__init__(self.stream, recipients, free_bytes=file.free_bytes)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._file:
            if kind is None:
                self.end()
            else:
                self.leave()

    def truncate(self, size: int) -> None:
        """Never: what was sent cannot be taken back."""
        raise UnsupportedError(f"{self.name} is encrypted as a stream and cannot be cut to {size} bytes")


class _SealedText:
    """A text that is written from its beginning to its end, encrypted, in a file of the target."""

    rewritable = False

    def __init__(self, file: StoredFile, recipients: Sequence[str]) -> None:
        self.name = file.name
        self.stream = FileStream(file)
        self._file = file
        self._written = 0
        self._sealed: SealedStream | None = SealedStream(self.stream, [recipient_key(each) for each in recipients])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._file:
            if kind is None:
                self.end()

    @property
    def find_key(self) -> FileKey | None:
        """Opens what was written, until `forget`."""
        return None if self._sealed is None else known_key(self._sealed.file_key)

    def forget(self) -> None:
        """The key of the file goes."""
        self._sealed = None

    def end(self) -> None:
        """The last chunk, and the wait until all is safe."""
        if self._sealed is not None:
            self._sealed.end()

    def write_at(self, offset: int, data: Buffer) -> None:
        """All of `data`, which follows what was written before."""
        if self._sealed is None or offset != self._written:
            raise UnsupportedError(f"{self.name} is encrypted as a stream and cannot be written at {offset}")
        self._sealed.send(data)
        self._written += len(data)

    def write_parts(self, offset: int, parts: Sequence[Buffer]) -> None:
        """The same for several."""
        for part in parts:
            self.write_at(offset, part)
            offset += len(part)

    def read_at(self, offset: int, size: int) -> bytes:
        """Never: a stream has no way back."""
        raise UnsupportedError(f"{self.name} is a stream, from which nothing can be read back")

    def reserve(self, size: int) -> None:
        """A stream takes no room beforehand."""

    def free_bytes(self) -> int | None:
        """As much as the target has."""
        return self._file.free_bytes()

    def scratch(self, size: int) -> None:
        """Nothing is put beside the file in the clear."""

    def sync(self) -> None:
        """Full chunks are safe; the last one is, when the file was closed."""
        if self._sealed is not None:
            self._sealed.sync()

    def truncate(self, size: int) -> None:
        """Never shorter than it is: what was sent cannot be taken back."""
        if size != self._written:
            raise UnsupportedError(f"{self.name} is encrypted as a stream and cannot be cut to {size} bytes")


class _ClearManifest:
    """The manifest that everybody may read: of what is written to it only what may be known is kept."""

    rewritable = True

    def __init__(self, file: StoredFile, clear: Callable[[Manifest], Manifest]) -> None:
        self.name = file.name
        self._file = file
        self._clear = clear

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._file:
            pass

    def write_at(self, offset: int, data: Buffer) -> None:
        """The whole manifest as JSON, at once."""
        if offset:
            raise UnsupportedError(f"{self.name} is written at once, not at {offset}")
        cleared = self._clear(Manifest.from_json(bytes(data).decode(), self.name))
        text = cleared.to_json().encode()
        self._file.write_at(0, text)
        self._file.truncate(len(text))

    def write_parts(self, offset: int, parts: Sequence[Buffer]) -> None:
        """The same in parts."""
        self.write_at(offset, b"".join(parts))

    def read_at(self, offset: int, size: int) -> bytes:
        """What is there."""
        return self._file.read_at(offset, size)

    def reserve(self, size: int) -> None:
        """As the target does it."""
        self._file.reserve(size)

    def free_bytes(self) -> int | None:
        """As much as the target has."""
        return self._file.free_bytes()

    def scratch(self, size: int) -> None:
        """Nothing is put beside the file."""

    def sync(self) -> None:
        """As the target does it."""
        self._file.sync()

    def truncate(self, size: int) -> None:
        """It is as long as what may be known already, whatever `size` all of it had."""
