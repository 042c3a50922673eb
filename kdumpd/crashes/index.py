# SPDX-License-Identifier: GPL-2.0-or-later
"""The dumps that arrived: one `Crash` for each directory that a capture left in the crash folder.

Knows manifests and the names files have. Trusts nothing it reads: the folder may be writable by others, manifests
hold text out of crashed memory, links are not followed. A dump counts as complete only when its manifest says so
*and* the file has its final name and the size given there.
"""

from __future__ import annotations

import dataclasses
import enum
import os
import re
import stat
from pathlib import Path

from kdumpd.config.layout import DUMP_NAMES, INCOMPLETE_NAMES, LOG_NAMES
from kdumpd.dumpfile.manifest import (
    DUMP_NAME,
    ENCRYPTED_SUFFIX,
    INCOMPLETE_NAME,
    LOG_NAME,
    MANIFEST_NAME,
    Manifest,
    Result,
)
from kdumpd.errors import DumpFormatError, KdumpError, NotFoundError, TargetError, os_reason

_MANIFEST_LIMIT_BYTES = 1 << 20
_NAMES = {DUMP_NAME: DUMP_NAMES, INCOMPLETE_NAME: INCOMPLETE_NAMES, LOG_NAME: LOG_NAMES}


class Standing(enum.StrEnum):
    """How a capture stands today; the first four are `Result` of the manifest."""

    COMPLETE = "complete"
    INCOMPLETE = "incomplete"
    LOG_ONLY = "log-only"
    FAILED = "failed"
    INTERRUPTED = "interrupted"  # files, but no manifest: the capture never came to its end
    DAMAGED = "damaged"  # the manifest cannot be read, or promises a dump that is not there


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Crash:
    """One crash directory. Times are microseconds of CLOCK_REALTIME; `problem` explains what is not as promised.

    `dump` is the dump with its final name, None while there is none; `dump_bytes` is also of an incomplete one.
    `also` are other folders that captures of the same crash left, with less in them.
    """

    name: str
    path: Path
    standing: Standing
    time_usec: int
    manifest: Manifest | None = None
    dump: Path | None = None
    dump_bytes: int | None = None
    log: Path | None = None
    problem: str | None = None
    also: tuple[Path, ...] = ()

    @property
    def took_usec(self) -> int | None:
        """How long the capture ran."""
        if self.manifest is None:
            return None
        return max(0, self.manifest.finished_usec - self.manifest.started_usec)


def read_crashes(folder: Path) -> tuple[Crash, ...]:
    """All crashes below `folder`, oldest first; none when the folder does not exist.

    Raises TargetError when the folder, or one in it, may not be read.
    """
    try:
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
    except FileNotFoundError:
        return ()
    except PermissionError as error:
        raise TargetError(
            f"{folder} may not be read: {os_reason(error)}", hint="dumps are for root: use sudo"
        ) from error
    except OSError as error:
        raise TargetError(f"{folder} cannot be read: {os_reason(error)}") from error
    found = (read_crash(folder / name) for name in names)
    return tuple(
        sorted((crash for crash in found if crash is not None), key=lambda crash: (crash.time_usec, crash.name))
    )


def read_crash(path: Path) -> Crash | None:
    """The crash in directory `path`, None when no capture made it.

    Raises TargetError when the caller may not look into it.
    """
    files = _Files(path)
    dump, incomplete, log = files.find(DUMP_NAME), files.find(INCOMPLETE_NAME), files.find(LOG_NAME)
    if MANIFEST_NAME not in files and incomplete is None and log is None:
        return None  # somebody else's directory
    if MANIFEST_NAME not in files:
        return Crash(
            name=path.name,
            path=path,
            standing=Standing.INTERRUPTED,
            time_usec=files.time_usec(),
            dump_bytes=files.size(incomplete),
            log=log,
            problem="the capture ended before it wrote its manifest",
        )
    try:
        manifest = Manifest.from_json(_read_manifest(path / MANIFEST_NAME), str(path / MANIFEST_NAME))
    except KdumpError as error:
        return Crash(
            name=path.name,
            path=path,
            standing=Standing.DAMAGED,
            time_usec=files.time_usec(),
            dump=dump,
            dump_bytes=files.size(dump),
            log=log,
            problem=error.sentence,
        )
    standing, problem = _stands(manifest, dump, files)
    return Crash(
        name=path.name,
        path=path,
        standing=standing,
        time_usec=manifest.crash_time_usec or manifest.started_usec,
        manifest=manifest,
        dump=dump,
        dump_bytes=files.size(incomplete if dump is None else dump),
        log=log,
        problem=problem,
    )


def _stands(manifest: Manifest, dump: Path | None, files: _Files) -> tuple[Standing, str | None]:
    """What the manifest says, checked against the files beside it."""
    if manifest.result is not Result.COMPLETE:
        return Standing(manifest.result.value), manifest.reason
    if manifest.dump is None:
        return Standing.DAMAGED, "the manifest calls the dump complete, but names no file"
    size = files.size(dump)
    if dump is None or size is None:
        name = DUMP_NAME + (ENCRYPTED_SUFFIX if manifest.encrypted_to else "")
        return Standing.DAMAGED, f"the manifest calls the dump complete, but there is no file {name}"
    if size != manifest.dump.size_bytes:
        return Standing.DAMAGED, f"{dump.name} has {size} bytes, the manifest says {manifest.dump.size_bytes}"
    return Standing.COMPLETE, manifest.reason


def _kind(name: str) -> str | None:
    """What kdumpd itself would have called a file, None for others."""
    plain = name.removesuffix(ENCRYPTED_SUFFIX)
    return next((kind for kind, names in _NAMES.items() if plain == kind or names.fullmatch(plain)), None)


class _Files:
    """The regular files of a directory; links and devices count as absent."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stats: dict[str, os.stat_result] = {}
        try:
            # Other names than kdumpd's own are those of layouts.
            found = [MANIFEST_NAME, *filter(_kind, os.listdir(path))]
        except PermissionError as error:
            raise TargetError(f"{path} may not be read", hint="dumps are for root: use sudo") from error
        except OSError:
            return
        for name in found:
            try:
                status = os.lstat(path / name)
            except PermissionError as error:
                raise TargetError(f"{path} may not be read", hint="dumps are for root: use sudo") from error
            except OSError:
                continue
            if stat.S_ISREG(status.st_mode):
                self._stats[name] = status

    def __contains__(self, name: str) -> bool:
        return name in self._stats

    def find(self, name: str) -> Path | None:
        """The file called `name`, or so and encrypted; None without one."""
        return next((self._path / each for each in sorted(self._stats) if _kind(each) == name), None)

    def size(self, file: Path | None) -> int | None:
        """Bytes, None without such a file."""
        return self._stats[file.name].st_size if file is not None else None

    def time_usec(self) -> int:
        """When the oldest of the files was last written, for captures that left no time of their own."""
        return min(status.st_mtime_ns for status in self._stats.values()) // 1000


def _read_manifest(path: Path) -> str:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb") as file:
            data = file.read(_MANIFEST_LIMIT_BYTES + 1)
    except OSError as error:
        raise TargetError(f"{path} cannot be read: {os_reason(error)}") from error
    if len(data) > _MANIFEST_LIMIT_BYTES:
        raise DumpFormatError(f"{path} is too long for a manifest")
    return data.decode(errors="replace")


def find_crash(crashes: tuple[Crash, ...], name: str) -> Crash:
    """The crash called `name` or a part of it; "last" and 1 are the newest, 2 the one before. Raises NotFoundError."""
    if not crashes:
        raise NotFoundError("No crash has been captured yet")
    if name == "last":
        return crashes[-1]
    if re.fullmatch("[0-9]{1,4}", name) and 1 <= int(name) <= len(crashes):
        return crashes[-int(name)]
    matches = [crash for crash in crashes if crash.name == name]
    if not matches:
        matches = [crash for crash in crashes if name and name in crash.name]
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise NotFoundError(f"{name!r} fits {len(matches)} crashes", hint="name one of them: kdumpctl list")
    raise NotFoundError(f"There is no crash {name!r}", hint="see: kdumpctl list")
