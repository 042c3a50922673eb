# SPDX-License-Identifier: GPL-2.0-or-later
"""`python3 -m kdumpd.crashes.recover`: copies the dumps on raw devices to `path`, and only then empties the devices.

The copy is made as the collector makes a crash: private from the first byte, on stable storage, under the final name
only when the checksums in the manifest are right. After an interruption, what is there already stays.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from kdumpd.config import Config, read_config
from kdumpd.config.targets import RawTarget
from kdumpd.crashes.index import read_crash
from kdumpd.crashes.verify import verify
from kdumpd.dumpfile.manifest import DUMP_NAME, ENCRYPTED_SUFFIX, INCOMPLETE_NAME, MANIFEST_NAME, Manifest
from kdumpd.errors import KdumpError, NoSpaceError, TargetError
from kdumpd.host import blockdev, rawdisk
from kdumpd.targets.files import CrashDirectory
from kdumpd.targets.raw import RawDevice
from kdumpd.targets.raw_layout import SLOT_BYTES, RawCrash, RawFile, newest

# The final name of a dump, and the one that it has until its checksums are right.
_DUMPS = {f"{DUMP_NAME}{suffix}": f"{INCOMPLETE_NAME}{suffix}" for suffix in ("", ENCRYPTED_SUFFIX)}
_PIECE_BYTES = 1 << 20
# The machine goes on working on that filesystem.
_KEPT_FREE_BYTES = 64 << 20


def waiting(device: Path) -> tuple[str, ...]:
    """The names of the crashes on a raw device, which is only read; none where there is no table of ours."""
    try:
        with device.open("rb") as file:
            contents = newest(file.read(SLOT_BYTES), file.read(SLOT_BYTES))
    except OSError:
        return ()
    return () if contents is None else tuple(crash.name for crash in contents.crashes)


def recover(device: Path, root: Path, directory: str) -> tuple[str, ...]:
    """Copies each crash on `device` to a folder below `root`/`directory` and empties the device.

    Returns a sentence for each. Raises KdumpError when one cannot be copied; the device then keeps all of them.
    """
    with RawDevice(device) as raw:
        if not raw.contents.crashes:
            return ()
        said = [_recover_one(raw, crash, root, directory) for crash in raw.contents.crashes]
        raw.clear()
    return tuple(said)


def _recover_one(raw: RawDevice, crash: RawCrash, root: Path, directory: str) -> str:
    files = {file.name: file for file in crash.files if file.size_bytes}
    manifest = _small(raw, files[MANIFEST_NAME]) if MANIFEST_NAME in files else None
    there = root / directory.lstrip("/") / crash.name
    if manifest is not None and _is_there(there, manifest):
        return f"the crash {crash.name} on {raw.path} was copied before, to {there}"
    _require_room(root, directory, sum(file.size_bytes for file in crash.files))
    with CrashDirectory.create(root, directory, crash.name) as folder:
        problem = None
        for name, file in files.items():
            if name in _DUMPS:
                _copy(raw, file, folder, _DUMPS[name])
                problem = _dump_problem(raw, file, manifest)
                if problem is None:
                    folder.rename(_DUMPS[name], name)
            elif name not in (MANIFEST_NAME, f"{MANIFEST_NAME}.tmp"):
                _copy(raw, file, folder, name)
        if manifest is not None:
            with folder.create_file(f"{MANIFEST_NAME}.tmp") as output:
                output.write_at(0, manifest)
                output.sync()
            folder.rename(f"{MANIFEST_NAME}.tmp", MANIFEST_NAME)
        folder.sync()
        copied = f"the crash {crash.name} was copied from {raw.path} to {folder.path}"
    return copied if problem is None else f"{copied}, but its dump is not what was written: {problem}"


def _is_there(folder: Path, manifest: bytes) -> bool:
    """Whether an earlier run copied it whole."""
    try:
        if (folder / MANIFEST_NAME).read_bytes() != manifest:
            return False
        crash = read_crash(folder)
    except (OSError, KdumpError):
        return False
    return crash is not None and verify(crash) is None


def _small(raw: RawDevice, file: RawFile) -> bytes:
    """The bytes of a file that has its checksum in the table. Raises TargetError when they are others."""
    data = raw.read(file.offset, file.size_bytes) if file.size_bytes <= _PIECE_BYTES else b""
    if hashlib.sha256(data).hexdigest() != file.sha256:
        raise TargetError(
            f"{file.name} on {raw.path} is not what was written: its checksum differs",
            hint=f"the device was left as it is; to give it up: wipefs --all {raw.path}",
        )
    return data


def _require_room(root: Path, directory: str, size_bytes: int) -> None:
    place = root / directory.lstrip("/")
    while not place.exists():
        place = place.parent
    found = os.statvfs(place)
    free = found.f_bavail * found.f_frsize
    if free < size_bytes + _KEPT_FREE_BYTES:
        raise NoSpaceError(
            f"{place} has {free >> 20} MiB free, too few for a dump of {-(-size_bytes >> 20)} MiB from a raw device",
            hint="make room there, then: systemctl start kdumpd-recover",
        )


def _copy(raw: RawDevice, file: RawFile, folder: CrashDirectory, name: str) -> None:
    with folder.create_file(name) as output:
        at = 0
        while at < file.size_bytes:
            data = raw.read(file.offset + at, min(_PIECE_BYTES, file.size_bytes - at))
            if not data:
                raise TargetError(f"{raw.path} ends within {file.name}")
            output.write_at(at, data)
            at += len(data)
        output.sync()


def _dump_problem(raw: RawDevice, file: RawFile, text: bytes | None) -> str | None:
    """What speaks against the dump on the device; None when it is what its manifest says."""
    if text is None:
        return "there is no manifest"
    record = Manifest.from_json(text.decode(errors="replace"), MANIFEST_NAME).dump
    if record is None or record.name != file.name or record.size_bytes != file.size_bytes:
        return "its size is another one than in the manifest"
    regions: list[tuple[int, int, str | None]] = [
        (region.offset, region.size_bytes, region.sha256) for region in record.regions
    ]
    for offset, size, wanted in regions or [(0, record.size_bytes, record.sha256)]:
        if wanted is not None and _sum(raw, file.offset + offset, size) != wanted:
            return f"the checksum of the bytes from {offset} on differs"
    return None


def _sum(raw: RawDevice, offset: int, size: int) -> str:
    digest = hashlib.sha256()
    while size > 0 and (data := raw.read(offset, min(_PIECE_BYTES, size))):
        digest.update(data)
        offset += len(data)
        size -= len(data)
    return digest.hexdigest()


def raw_devices(config: Config, root: Path = Path("/")) -> tuple[Path, ...]:
    """The raw devices in kdump.conf that are there and hold dumps of ours."""
    found = []
    for target in config.targets:
        if isinstance(target, RawTarget):
            block = blockdev.block_by_path(target.device, root)
            if block is not None and rawdisk.is_ours(block, root):
                found.append(root / "dev" / block)
    return tuple(found)


def main(arguments: Sequence[str] | None = None) -> int:
    """Recovers from each raw device of kdump.conf; the exit status is 0 when nothing is left on any."""
    parser = argparse.ArgumentParser(prog="python3 -m kdumpd.crashes.recover", description=__doc__)
    parser.add_argument("--root", type=Path, default=Path("/"), metavar="FOLDER", help="another root folder")
    parser.add_argument("--device", type=Path, metavar="FILE", help="this device alone")
    parser.add_argument("--path", metavar="FOLDER", help="where to instead of kdump.conf's path")
    options = parser.parse_args(arguments)
    config = read_config(options.root)
    devices = raw_devices(config, options.root) if options.device is None else (options.device,)
    failed = False
    for device in devices:
        try:
            for sentence in recover(device, options.root, options.path or config.path):
                print(f"<5>{sentence}", file=sys.stderr)
        except KdumpError as error:
            failed = True
            print(f"<3>{error}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
