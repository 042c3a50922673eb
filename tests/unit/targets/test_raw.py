# SPDX-License-Identifier: GPL-2.0-or-later
"""A raw device, stood in for by a file: what is written, what a cut leaves, what is never overwritten."""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from kdumpd.errors import NoSpaceError, TargetError
from kdumpd.targets import raw
from kdumpd.targets.raw import RawDevice, RawStore
from kdumpd.targets.raw_layout import DATA_AT, SLOT_BYTES, Contents, RawCrash, RawFile, decode, encode, newest

MIB = 1 << 20


@pytest.fixture
def device(tmp_path: Path) -> Path:
    """A disk of 8 MiB with something old on it, of which no filesystem is known."""
    path = tmp_path / "disk"
    path.write_bytes(random.Random(1).randbytes(8 * MIB))
    with path.open("r+b") as file:  # by chance nothing of it may look like a filesystem
        file.write(bytes(DATA_AT))
    return path


def save(path: Path, name: str, size: int = 100_000) -> bytes:
    """Saves a crash as the collector does; its dump."""
    data = random.Random(name).randbytes(size)
    with RawDevice(path) as opened:
        store = RawStore(opened, name, "raw")
        with store.create_file("manifest.json.tmp") as manifest:
            manifest.reserve(64 << 10)
            with store.create_file("log") as log:
                log.write_at(0, b"a log\n")
                log.sync()
            store.sync()
            with store.create_file("vmcore.incomplete") as dump:
                dump.write_at(5000, data[5000:])
                dump.write_parts(0, [data[:2000], data[2000:5000]])
                dump.truncate(size)
                dump.sync()
            store.rename("vmcore.incomplete", "vmcore")
            manifest.write_at(0, b"{}")
            manifest.sync()
        store.rename("manifest.json.tmp", "manifest.json")
    return data


def contents(path: Path) -> dict[str, dict[str, bytes]]:
    """All files of all crashes."""
    with RawDevice(path) as opened:
        return {
            crash.name: {file.name: opened.read(file.offset, file.size_bytes) for file in crash.files}
            for crash in opened.contents.crashes
        }


def test_what_was_written_is_there(device: Path) -> None:
    data = save(device, "host-1")
    assert contents(device) == {"host-1": {"log": b"a log\n", "vmcore": data, "manifest.json": b"{}"}}


def test_a_second_crash_lies_behind_the_first(device: Path) -> None:
    one, two = save(device, "host"), save(device, "host", 50_000)
    found = contents(device)
    assert (found["host"]["vmcore"], found["host-2"]["vmcore"][:50_000]) == (one, two)


def test_what_was_skipped_reads_as_zeros(device: Path) -> None:
    with RawDevice(device) as opened:
        store = RawStore(opened, "host", "raw")
        with store.create_file("f") as file:
            file.write_at(2 * MIB, b"end")
            file.truncate(2 * MIB + 10)
            assert file.read_at(0, 3 * MIB) == bytes(2 * MIB) + b"end" + bytes(7)
            file.truncate(5)
            assert file.read_at(0, 100) == bytes(5)


def test_a_full_device_says_so_and_keeps_what_is_there(device: Path) -> None:
    data = save(device, "host-1", 6 * MIB)
    with pytest.raises(NoSpaceError, match="is full"):
        save(device, "host-2", 3 * MIB)
    found = contents(device)
    assert found["host-1"]["vmcore"] == data
    assert found["host-2"]["log"] == b"a log\n"
    assert "vmcore" not in found["host-2"]


def test_an_open_file_keeps_the_room_that_it_reserved(device: Path) -> None:
    with RawDevice(device) as opened:
        store = RawStore(opened, "host", "raw")
        first = store.create_file("first")
        first.reserve(100_000)
        second = store.create_file("second")
        second.write_at(0, b"second" * 1000)
        first.write_at(0, b"x" * 100_000)
        assert second.read_at(0, 6000) == b"second" * 1000
        with pytest.raises(NoSpaceError):
            first.write_at(102_400, b"too far")
        with pytest.raises(TargetError, match="already has"):
            store.create_file("first")


def test_what_is_removed_gives_its_room_back(device: Path) -> None:
    with RawDevice(device) as opened:
        store = RawStore(opened, "host", "raw")
        store.create_file("log").write_at(0, b"log")
        with store.create_file("dump") as dump:
            dump.write_at(0, bytes(MIB))
            at = dump.offset
        store.remove("dump")
        assert store.create_file("other").offset == at


SIGNATURES = [
    (0x438, b"\x53\xef", "ext4"),
    (0, b"XFSB", "XFS"),
    (0x10040, b"_BHRfS_M", "btrfs"),
    (510, b"\x55\xaa", "partition table"),
    (512, b"EFI PART", "GPT"),
    (512, b"LABELONE", "LVM"),
    (0, b"LUKS\xba\xbe", "LUKS"),
    (4086, b"SWAPSPACE2", "swap"),
    (4096, b"\xfc\x4e\x2b\xa9", "md array"),
    (8 * MIB - 0x10000, b"\xfc\x4e\x2b\xa9", "md array"),
    (8 * MIB - 0x2000, b"\xfc\x4e\x2b\xa9", "md array"),
    (8 * MIB - 512, b"EFI PART", "GPT"),
    (128 * 1024 + 4096, b"\x0c\xb1\xba\x00\x00\x00\x00\x00", "ZFS"),
]


@pytest.mark.parametrize(("place", "mark", "words"), SIGNATURES)
def test_what_belongs_to_others_is_left_alone(place: int, mark: bytes, words: str, device: Path) -> None:
    with device.open("r+b") as file:
        file.seek(place)
        file.write(mark)
    before = hashlib.sha256(device.read_bytes()).digest()
    with pytest.raises(TargetError, match=words) as caught:
        save(device, "host")
    assert "wipefs" in str(caught.value.hint)
    assert hashlib.sha256(device.read_bytes()).digest() == before


@pytest.mark.parametrize(("place", "mark", "words"), SIGNATURES)
def test_only_before_the_data_does_a_mark_count_on_our_own_device(
    place: int, mark: bytes, words: str, device: Path
) -> None:
    """A dump may hold anything. What lies where our table is was put there later."""
    save(device, "host-1", 100_000)
    with device.open("r+b") as file:
        file.seek(place)
        file.write(mark)
    if place < DATA_AT:
        with pytest.raises(TargetError, match=words):
            save(device, "host-2")
    else:
        save(device, "host-2")


def test_real_filesystems_are_recognised(tmp_path: Path) -> None:
    import subprocess

    path = tmp_path / "disk"
    for words in (["mke2fs", "-q", "-F", "-t", "ext4"], ["mkswap", "-q"]):
        path.unlink(missing_ok=True)
        with path.open("wb") as file:
            file.truncate(8 * MIB)
        path.chmod(0o600)
        subprocess.run([*words, str(path)], check=True, capture_output=True)
        with pytest.raises(TargetError, match="holds"):
            RawDevice(path)


def test_a_device_that_is_too_small_or_none_at_all(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.write_bytes(bytes(1000))
    with pytest.raises(NoSpaceError, match="too few"):
        RawDevice(small)
    for path, words in (
        (tmp_path, "cannot be opened"),
        (tmp_path / "gone", "No such file"),
        (Path("/dev/null"), "no block"),
    ):
        with pytest.raises(TargetError, match=words):
            RawDevice(path)


class CutError(Exception):
    """The power is gone."""


@pytest.fixture
def writes(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The list's number says how many more writes reach the disk; the last one only in half."""
    left = [1 << 30]
    real = os.pwrite

    def cut(fd: int, data: memoryview, offset: int) -> int:
        if left[0] == 0:
            real(fd, data[: len(data) // 2], offset)
            raise CutError
        left[0] -= 1
        return real(fd, data, offset)

    monkeypatch.setattr(raw.os, "pwrite", cut)
    yield left


def test_cut_after_any_write_there_is_the_old_or_the_new(device: Path, writes: list[int]) -> None:
    """What the table names is whole at every moment, and the crash before stays."""
    old = save(device, "host-1", 30_000)
    before = device.read_bytes()
    new = random.Random("host-2").randbytes(40_000)
    seen = set()
    for count in range(40):
        device.write_bytes(before)
        writes[0] = count
        try:
            save(device, "host-2", 40_000)
        except CutError:
            over = False
        else:
            over = True
        writes[0] = 1 << 30
        found = contents(device)
        assert found["host-1"]["vmcore"] == old
        files = found.get("host-2", {})
        seen.add(tuple(sorted(files)))
        if "vmcore" in files:
            assert files["vmcore"] == new
        if "manifest.json" in files:
            assert files["manifest.json"] == b"{}"
            assert "vmcore" in files
        if over:
            break
    assert over, "the test ended before the capture did"
    assert () in seen
    assert ("log", "manifest.json", "vmcore") in seen


def test_a_table_is_read_only_whole() -> None:
    table = Contents(
        sequence=7, crashes=(RawCrash(name="h", files=(RawFile(name="f", offset=DATA_AT, size_bytes=3),)),)
    )
    slot = encode(table)
    assert len(slot) == SLOT_BYTES
    assert decode(slot) == table
    for at in range(0, slot.rindex(b"}") + 1, 3):
        damaged = bytearray(slot)
        damaged[at] ^= 1
        assert decode(bytes(damaged)) is None
    older = encode(Contents(sequence=6))
    assert newest(slot, older) == newest(older, slot) == table
    assert newest(b"", bytes(SLOT_BYTES)) is None


@pytest.mark.parametrize("name", ["", "..", ".x", "a/b", "a\nb", "/etc"])
def test_names_from_a_disk_do_not_choose_where_files_go(name: str) -> None:
    assert decode(encode(Contents(sequence=1, crashes=(RawCrash(name=name, files=()),)))) is None
    file = RawFile(name=name, offset=DATA_AT, size_bytes=1)
    assert decode(encode(Contents(sequence=1, crashes=(RawCrash(name="h", files=(file,)),)))) is None


def test_too_many_crashes_are_no_room() -> None:
    crashes = tuple(RawCrash(name=f"host-{number}", files=()) for number in range(3000))
    with pytest.raises(ValueError, match="too many"):
        encode(Contents(sequence=1, crashes=crashes))
