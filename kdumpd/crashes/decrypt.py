# SPDX-License-Identifier: GPL-2.0-or-later
"""Encrypted files of a crash become what they were: a dump that crash(8) opens, the log, the whole manifest.

Nothing is ever overwritten. Of a file that was cut or damaged all that lies before is kept, under a name that says so:
each piece is authenticated before it is used.
"""

from __future__ import annotations

import dataclasses
import os
import stat
from collections.abc import Sequence
from pathlib import Path

from kdumpd.dumpfile.age import find_file_key
from kdumpd.dumpfile.check import verify_dump
from kdumpd.dumpfile.flattened import HEADER_SIZE, is_flattened
from kdumpd.dumpfile.manifest import ENCRYPTED_SUFFIX, MANIFEST_NAME, FileRecord, Manifest, Result
from kdumpd.dumpfile.sealed import CHUNK, SealedFile
from kdumpd.dumpfile.stored import is_encrypted, open_plain
from kdumpd.dumpfile.unflatten import unflatten
from kdumpd.errors import DeniedError, DumpFormatError, NotFoundError, TargetError, UsageError, os_reason
from kdumpd.targets.files import DIRECTORY_MODE, FILE_MODE, OutputFile

_PARTIAL = ".incomplete"
_MANIFEST_LIMIT = 4 << 20


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Decrypted:
    """One file that was made. `problem` is why it is not all of what was encrypted, None when it is."""

    source: Path
    path: Path
    size_bytes: int
    problem: str | None = None


def encrypted_files(place: Path) -> tuple[Path, ...]:
    """The encrypted files of a crash folder, the dump last; `place` itself if it is a file.

    Raises NotFoundError when there is none, TargetError when the folder may not be read.
    """
    if not place.is_dir():
        return (place,)
    try:
        found = [
            path
            for path in place.iterdir()
            if path.suffix == ENCRYPTED_SUFFIX and stat.S_ISREG(path.lstat().st_mode) and path.stem != MANIFEST_NAME
        ]
        if not found and not (place / (MANIFEST_NAME + ENCRYPTED_SUFFIX)).is_file():
            raise NotFoundError(f"nothing in {place} is encrypted")
        return tuple(sorted(found, key=lambda path: (path.lstat().st_size, path.name)))
    except OSError as error:
        raise TargetError(f"{place} cannot be read: {os_reason(error)}") from error


def decrypt(place: Path, identities: Sequence[bytes], out: Path) -> tuple[Decrypted, ...]:
    """Decrypts a crash folder or one file into the folder `out`, which is made, or is empty of these names.

    Raises KdumpError when nothing could be decrypted at all; then `out` is not made. A manifest is written last, and
    only when it was encrypted beside the files.
    """
    opened: list[tuple[Path, SealedFile]] = []
    try:
        for path in encrypted_files(place):
            opened.append((path, _open(path, identities)))
        manifest = _manifest(place, identities) if place.is_dir() else None
        _make_folder(out)
        done = [_one(path, sealed, out) for path, sealed in opened]
    finally:
        for _, sealed in opened:
            sealed.close()
    if manifest is not None:
        done.append(_write_manifest(manifest, place, done, out))
    return tuple(done)


def _open(path: Path, identities: Sequence[bytes]) -> SealedFile:
    file = open_plain(path)
    try:
        if not is_encrypted(file.read_at(0, HEADER_SIZE)):
            raise DumpFormatError(f"{path} is not encrypted")
        return SealedFile(file, lambda header, name: find_file_key(header, identities, name))
    except BaseException:
        file.close()
        raise


def _make_folder(out: Path) -> None:
    try:
        out.mkdir(mode=DIRECTORY_MODE)
    except FileExistsError:
        status = out.lstat()
        if not stat.S_ISDIR(status.st_mode):
            raise UsageError(f"{out} is not a folder", hint="-o FOLDER names another one") from None
        if status.st_mode & 0o077 or status.st_uid != os.geteuid():
            raise DeniedError(
                f"{out} is not yours alone: what is decrypted would be open to others", hint=f"chmod 700 {out}"
            ) from None
    except OSError as error:
        raise TargetError(f"{out} cannot be made: {os_reason(error)}") from error


class _Reader:
    """Goes through an encrypted file from front to back, and stops where it is not what was written any more."""

    def __init__(self, sealed: SealedFile) -> None:
        self._sealed = sealed
        self.at = 0
        self.problem: str | None = None

    def read(self, size: int) -> bytes:
        """Up to `size` bytes; nothing at the end, or where the damage begins."""
        if self.problem is not None:
            return b""
        try:
            # Not across the border of a chunk: the next one may be damaged.
            data = self._sealed.read_at(self.at, min(size, CHUNK - self.at % CHUNK))
        except DumpFormatError as error:
            self.problem = error.sentence
            return b""
        if not data and not self._sealed.complete:
            self.problem = (
                f"{self._sealed.name} was cut or damaged at its end: of what was encrypted {self.at} bytes came"
            )
        self.at += len(data)
        return data


def _one(path: Path, sealed: SealedFile, out: Path) -> Decrypted:
    name = path.name.removesuffix(ENCRYPTED_SUFFIX).removesuffix(_PARTIAL)
    final, partial = out / name, out / (name + _PARTIAL)
    if os.path.lexists(final):
        raise UsageError(f"{final} exists", hint="-o FOLDER names another place; nothing is overwritten")
    reader = _Reader(sealed)
    try:
        start = sealed.read_at(0, HEADER_SIZE)
    except DumpFormatError:
        start = b""  # told below
    with _create(partial) as file:
        if is_flattened(start) and len(start) == HEADER_SIZE:
            _, whole = unflatten(reader.read, str(path), file)
        else:
            whole = _copy(reader, file)
    size = partial.stat().st_size
    problem = reader.problem
    if problem is None and not whole:
        problem = f"the dump in {path} is incomplete: its capture did not come to the end"
    if problem is None and is_flattened(start):
        try:
            verify_dump(partial)
        except DumpFormatError as error:
            problem = error.sentence
    if problem is not None:
        return Decrypted(source=path, path=partial, size_bytes=size, problem=problem)
    partial.rename(final)
    return Decrypted(source=path, path=final, size_bytes=size)


def _create(path: Path) -> OutputFile:
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        return OutputFile(os.open(path, flags, FILE_MODE), str(path))
    except FileExistsError:
        hint = "-o FOLDER names another place; nothing is overwritten"
        raise UsageError(f"{path} exists", hint=hint) from None
    except OSError as error:
        raise TargetError(f"{path} cannot be made: {os_reason(error)}") from error


def _copy(reader: _Reader, file: OutputFile) -> bool:
    at = 0
    while data := reader.read(CHUNK):
        file.write_at(at, data)
        at += len(data)
    file.sync()
    return True


def _manifest(place: Path, identities: Sequence[bytes]) -> Manifest | None:
    """The manifest with the words that came out of the memory; None where there is none that is whole."""
    path = place / (MANIFEST_NAME + ENCRYPTED_SUFFIX)
    if not path.is_file() or path.is_symlink():
        return None
    try:
        sealed = _open(path, identities)
        try:
            if not sealed.complete or sealed.size > _MANIFEST_LIMIT:
                return None
            return Manifest.from_json(sealed.read_at(0, sealed.size).decode(errors="replace"), str(path))
        finally:
            sealed.close()
    except DumpFormatError:
        return None


def _write_manifest(manifest: Manifest, place: Path, done: Sequence[Decrypted], out: Path) -> Decrypted:
    """The manifest of the folder that was made: with the names and sizes of the files that are in it now."""
    records = {each.source.name: FileRecord(name=each.path.name, size_bytes=each.size_bytes) for each in done}
    dump = None if manifest.dump is None else records.get(manifest.dump.name)
    log = None if manifest.log is None else records.get(manifest.log.name)
    result, reason = manifest.result, manifest.reason
    problems = [each.problem for each in done if each.problem is not None]
    if problems and result is Result.COMPLETE:
        result, reason = Result.INCOMPLETE, problems[-1]
    manifest_here = dataclasses.replace(manifest, result=result, reason=reason, dump=dump, log=log, encrypted_to=())
    data = manifest_here.to_json().encode()
    path = out / MANIFEST_NAME
    with _create(path) as file:
        file.write_at(0, data)
        file.sync()
    lost = [
        record.name for record in (manifest.dump, manifest.log) if record is not None and record.name not in records
    ]
    problem = f"{place} lacks {' and '.join(lost)}, which its manifest names" if lost else None
    return Decrypted(
        source=place / (MANIFEST_NAME + ENCRYPTED_SUFFIX), path=path, size_bytes=len(data), problem=problem
    )
