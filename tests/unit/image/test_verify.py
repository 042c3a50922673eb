# SPDX-License-Identifier: GPL-2.0-or-later
"""The check finds what was tampered with, also when the record was made to fit."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kdumpd.errors import BuildError
from kdumpd.image import check, cpio, parts, read_record, verify
from kdumpd.image.contents import record_of
from kdumpd.image.cpio import Entry
from kdumpd.image.record import ImageRecord, Part, image_id, manifest_json

if TYPE_CHECKING:
    from kdumpd.image import BuildRequest

MANIFEST = "etc/kdumpd/image.json"


def _entries(folder: Path, record: ImageRecord) -> dict[str, Entry]:
    return parts.read((folder / "initrd").read_bytes(), record.parts)


def _store(folder: Path, record: ImageRecord, archive: bytes) -> ImageRecord:
    """Writes one archive with sums that fit it, so that only its contents can give it away."""
    digest = hashlib.sha256(archive).hexdigest()
    size = len(archive)
    part = Part(name="base", compression="none", offset=0, packed_bytes=size, unpacked_bytes=size, sha256=digest)
    fitting = dataclasses.replace(
        record, compression="none", packed_bytes=size, packed_sha256=digest, unpacked_bytes=size, parts=(part,)
    )
    (folder / "initrd").write_bytes(archive)
    (folder / "image.json").write_text(fitting.to_json())
    return fitting


def _forge(folder: Path, record: ImageRecord, change: Callable[[dict[str, Entry]], None]) -> None:
    """Changes the entries and makes record and manifest fit them, as a faulty builder would."""
    entries = _entries(folder, record)
    change(entries)
    entries.pop(MANIFEST, None)
    entries.pop(parts.PAYLOAD_PATH)  # all is in one archive then
    files = tuple(record_of(entry) for _, entry in sorted(entries.items()))
    name = image_id(files)
    text = manifest_json(name, record.kernel, record.kdumpd_version, files)
    entries[MANIFEST] = Entry(path=MANIFEST, mode=stat.S_IFREG | 0o600, content=text.encode())
    files = tuple(record_of(entry) for _, entry in sorted(entries.items()))
    _store(folder, dataclasses.replace(record, image_id=name, files=files), cpio.write(entries.values()))


def test_a_forged_image_without_a_fault_passes(image: tuple[Path, ImageRecord]) -> None:
    """So that the tests below fail for their own reason."""
    _forge(*image, lambda entries: None)
    check(image[0])


@pytest.mark.parametrize("position", [0, 5000, -1])
def test_one_changed_byte_is_found(image: tuple[Path, ImageRecord], position: int) -> None:
    path = image[0] / "initrd"
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)
    with pytest.raises(BuildError, match="not the one its record describes"):
        check(image[0])


def test_an_image_cut_short_is_found(image: tuple[Path, ImageRecord]) -> None:
    os.truncate(image[0] / "initrd", image[1].packed_bytes - 4096)
    with pytest.raises(BuildError, match="bytes, its record says"):
        check(image[0])


def test_a_cut_archive_is_found_even_if_its_sums_fit(image: tuple[Path, ImageRecord]) -> None:
    archive = cpio.write(_entries(*image).values())
    _store(*image, archive[: len(archive) // 2])
    with pytest.raises(BuildError, match="damaged"):
        check(image[0])


def test_a_changed_file_is_named_even_if_the_sums_fit(image: tuple[Path, ImageRecord]) -> None:
    entries = _entries(*image)
    entries["init"] = dataclasses.replace(entries["init"], content=b"#!/bin/sh\nexec sh\n")
    del entries[parts.PAYLOAD_PATH]
    _store(*image, cpio.write(entries.values()))
    with pytest.raises(BuildError, match="/init differs"):
        check(image[0])


def test_a_file_too_many_is_named(image: tuple[Path, ImageRecord]) -> None:
    entries = _entries(*image)
    entries["etc/extra"] = Entry(path="etc/extra", mode=stat.S_IFREG | 0o644)
    del entries[parts.PAYLOAD_PATH]
    _store(*image, cpio.write(entries.values()))
    with pytest.raises(BuildError, match="/etc/extra is not in its record"):
        check(image[0])


def test_a_record_of_another_image_is_found(image: tuple[Path, ImageRecord]) -> None:
    record = dataclasses.replace(image[1], image_id="0" * 64)
    (image[0] / "image.json").write_text(record.to_json())
    with pytest.raises(BuildError, match="id that its list of files gives"):
        check(image[0])


def _without(part: str) -> Callable[[dict[str, Entry]], None]:
    def change(entries: dict[str, Entry]) -> None:
        for path in [path for path in entries if part in path]:
            del entries[path]

    return change


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ("/libz.so.1", r"library libz\.so\.1, which /usr/.* needs, is not inside"),
        ("/libblas.so.3", r"library libblas\.so\.3, which .* needs"),
        ("ld-linux", r"the loader /.*ld-linux.*, which .* needs, is not inside"),
        ("xfs.ko", r"kernel module /kdumpd/modules/.*/xfs\.ko is listed but not inside"),
        ("usr/bin/python3", r"/usr/bin/python3 is missing"),
        ("kdumpd/bin/busybox", r"the link /(usr|kdumpd)/bin/.* leads to /kdumpd/bin/busybox, which is not inside"),
        ("collector/__main__", r"collector/__main__\.pyc is missing"),
        ("dev/console", "/dev/console is missing"),
        ("etc/kdumpd/supervisor", "supervisor is missing"),
    ],
)
def test_a_part_that_is_missing_is_named(image: tuple[Path, ImageRecord], part: str, words: str) -> None:
    _forge(*image, _without(part))
    with pytest.raises(BuildError, match=words):
        check(image[0])


def test_a_library_cut_short_is_found(image: tuple[Path, ImageRecord]) -> None:
    def change(entries: dict[str, Entry]) -> None:
        path = next(path for path in entries if path.endswith("/libz.so.1"))
        entries[path] = dataclasses.replace(entries[path], content=entries[path].content[:300])

    _forge(*image, change)
    with pytest.raises(BuildError, match="damaged ELF"):
        check(image[0])


def test_without_image_or_record_the_file_is_named(image: tuple[Path, ImageRecord]) -> None:
    (image[0] / "initrd").unlink()
    with pytest.raises(BuildError, match="/initrd cannot be read"):
        check(image[0])
    (image[0] / "image.json").unlink()
    with pytest.raises(BuildError, match=r"no record at .*/image\.json"):
        check(image[0])


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"format": 99}', "null"])
def test_what_is_no_record_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "image.json").write_text(text)
    with pytest.raises(BuildError, match="is not the record"):
        read_record(tmp_path)


def test_the_quick_look_sees_the_packed_bytes_only(built: tuple[BuildRequest, ImageRecord]) -> None:
    request, record = built
    assert len(verify.read_packed(request.output, record)) == record.packed_bytes
