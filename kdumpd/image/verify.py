# SPDX-License-Identifier: GPL-2.0-or-later
"""The check of a capture image: the bytes that were written are unpacked again and compared with their record.

Beyond comparing, it asks what a capture kernel would stumble over: is every library inside, every module that
init is told to load, the program init starts. It does not know how the image was made.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Container, Mapping
from pathlib import Path, PurePosixPath

from kdumpd.config.model import Builder
from kdumpd.errors import BuildError, os_reason
from kdumpd.image import cpio, elf, parts, squash
from kdumpd.image.contents import merged, record_of
from kdumpd.image.record import (
    IMAGE_PACKAGE,
    INITRD_NAME,
    MANIFEST_PATH,
    MODULES_PATH,
    FileRecord,
    ImageRecord,
    image_id,
    read_record,
)

_REBUILD = "rebuild the image: kdumpctl rebuild"
_MUST_HAVE = (
    "init",
    "dev/console",
    "kdumpd/bin/sh",
    "usr/bin/sh",
    "usr/bin/python3",
    f"{IMAGE_PACKAGE}/collector/__main__.pyc",
    "etc/kdumpd/capture.json",
    "etc/kdumpd/supervisor",
    "etc/kdumpd/note",
    MODULES_PATH,
    MANIFEST_PATH,
)


def check(folder: Path) -> ImageRecord:
    """Checks the image in `folder` from its bytes on disk. Raises BuildError with what is wrong."""
    record = read_record(folder)
    check_packed(read_packed(folder, record), record)
    return record


def read_packed(folder: Path, record: ImageRecord) -> bytes:
    """The bytes of the image in `folder`, if they are those of its record; BuildError otherwise. Quick."""
    path = folder / INITRD_NAME
    try:
        packed = path.read_bytes()
    except OSError as error:
        raise BuildError(f"the capture image {path} cannot be read: {os_reason(error)}", hint=_REBUILD) from error
    if len(packed) != record.packed_bytes:
        raise BuildError(
            f"the capture image {path} has {len(packed)} bytes, its record says {record.packed_bytes}",
            hint=_REBUILD,
        )
    if hashlib.sha256(packed).hexdigest() != record.packed_sha256:
        raise BuildError(f"the capture image {path} is not the one its record describes", hint=_REBUILD)
    return packed


def check_packed(packed: bytes, record: ImageRecord, *, stock_checked: bool = False) -> None:
    """Unpacks `packed` and holds it to `record` and to what a capture kernel needs. Raises BuildError.

    With `stock_checked` the bytes of the squashfs are those of an image that passed this: their sum is enough.
    """
    entries = parts.read(packed, record.parts, squashed=not stock_checked)
    unseen = frozenset[str]()
    if stock_checked and parts.PAYLOAD_PATH in entries:
        inside = {file.path: file for file in record.files if file.path.startswith(f"{squash.FOLDER}/")}
        unseen = frozenset(inside.keys() - entries.keys())
        entries |= {path: cpio.Entry(path=path, mode=inside[path].mode) for path in unseen}
    if record.unpacked_bytes != sum(part.unpacked_bytes for part in record.parts):
        raise _wrong("its record does not add up")
    _compare(entries, record.files, unseen)
    if image_id(record.files) != record.image_id:
        raise _wrong("its record does not have the id that its list of files gives")
    if entries[MANIFEST_PATH].content.decode() != record.manifest_json():
        raise _wrong("the manifest inside differs from the record beside it")
    check_contents(entries, own=record.builder is Builder.BUSYBOX, unseen=unseen)


def check_contents(
    entries: Mapping[str, cpio.Entry], *, own: bool = True, unseen: Container[str] = frozenset()
) -> None:
    """Raises BuildError unless all that runs in the capture kernel finds what it needs among `entries`.

    Where they are not our own alone a link of another tool may lead to what is not there. Of those in `unseen` only
    paths and modes are known.
    """
    for path in _MUST_HAVE if own else (*_MUST_HAVE, "kdumpd/init"):
        if path not in entries:
            raise _wrong(f"/{path} is missing")
    for line in entries[MODULES_PATH].content.decode().splitlines():
        module = entries.get(line.lstrip("/"))
        if module is None or not module.is_file:
            raise _wrong(f"the kernel module {line} is listed but not inside")
    for entry in entries.values():
        parent = str(PurePosixPath(entry.path).parent)
        if parent != "." and (parent not in entries or not stat.S_ISDIR(entries[parent].mode)):
            raise _wrong(f"/{entry.path} lies in no folder")
        if entry.path in unseen:
            continue
        if stat.S_ISLNK(entry.mode):
            if own or entry.path.startswith("kdumpd/"):
                _follow(entries, entry.path)
        elif entry.is_file and ".ko" not in PurePosixPath(entry.path).suffixes:
            _check_elf(entries, entry)


def _compare(entries: Mapping[str, cpio.Entry], files: tuple[FileRecord, ...], unseen: Container[str]) -> None:
    described = {file.path: file for file in files}
    for path in sorted(entries.keys() | described.keys()):
        if path not in entries:
            raise _wrong(f"/{path} is missing")
        if path not in described:
            raise _wrong(f"/{path} is not in its record")
        if path in unseen:
            continue
        found, wanted = record_of(entries[path]), described[path]
        if (found.mode, found.size, found.sha256) != (wanted.mode, wanted.size, wanted.sha256):
            raise _wrong(f"/{path} differs from its record")


def _check_elf(entries: Mapping[str, cpio.Entry], entry: cpio.Entry) -> None:
    facts = elf.parse_elf(entry.content, f"/{entry.path}")
    if facts is None:
        return
    if facts.interpreter is not None and merged(facts.interpreter) not in entries:
        raise _wrong(f"the loader {facts.interpreter}, which /{entry.path} needs, is not inside")
    libc_dirs = {os.path.dirname(path) for path in entries if path.endswith("/libc.so.6")}
    folders = [merged(folder) for folder in elf.runpath_dirs(facts, f"/{entry.path}")]
    folders += [*sorted(libc_dirs), "usr/lib", "usr/lib64"]
    for soname in facts.needed:
        if not any(f"{folder}/{soname}" in entries for folder in folders):
            raise _wrong(f"the library {soname}, which /{entry.path} needs, is not inside")


def _follow(entries: Mapping[str, cpio.Entry], path: str) -> None:
    """Raises BuildError when a symbolic link of the image leads nowhere."""
    here = path
    for _ in range(8):
        entry = entries.get(here)
        if entry is None:
            raise _wrong(f"the link /{path} leads to /{here}, which is not inside")
        if not stat.S_ISLNK(entry.mode):
            return
        here = os.path.normpath(os.path.join("/", os.path.dirname(here), entry.content.decode())).lstrip("/")
    raise _wrong(f"the link /{path} leads round in circles")


def _wrong(what: str) -> BuildError:
    return BuildError(f"the capture image did not pass its check: {what}", hint=_REBUILD)
