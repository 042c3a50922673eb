# SPDX-License-Identifier: GPL-2.0-or-later
"""The newc archive: written, read back, read by cpio(1), and refused when damaged."""

from __future__ import annotations

import random
import stat
import subprocess

import pytest

from kdumpd.errors import BuildError
from kdumpd.image import cpio, pack
from kdumpd.image.cpio import Entry

ENTRIES = [
    Entry(path="etc", mode=stat.S_IFDIR | 0o755),
    Entry(path="etc/odd", mode=stat.S_IFREG | 0o600, content=b"12345"),
    Entry(path="etc/empty", mode=stat.S_IFREG | 0o644),
    Entry(path="etc/ünicode", mode=stat.S_IFREG | 0o644, content=bytes(range(256)) * 33),
    Entry(path="bin", mode=stat.S_IFLNK | 0o777, content=b"usr/bin"),
    Entry(path="console", mode=stat.S_IFCHR | 0o600, device=(5, 1)),
]


def _sorted(entries: list[Entry]) -> list[Entry]:
    return sorted(entries, key=lambda entry: entry.path)


def test_what_was_written_is_read_back() -> None:
    assert list(cpio.read(cpio.write(ENTRIES))) == _sorted(ENTRIES)


def test_the_order_of_adding_does_not_show() -> None:
    shuffled = random.Random(1).sample(ENTRIES, len(ENTRIES))
    assert cpio.write(shuffled) == cpio.write(ENTRIES)


def test_cpio_itself_reads_it() -> None:
    done = subprocess.run(["cpio", "-itv", "--quiet"], input=cpio.write(ENTRIES), capture_output=True, check=True)
    lines = done.stdout.decode().splitlines()
    assert len(lines) == len(ENTRIES)
    console = next(line for line in lines if line.endswith("console"))
    assert console.startswith("crw-------")
    assert "5,   1" in console
    assert any(line.endswith("bin -> usr/bin") for line in lines)
    assert all("Jan  1  1970" in line for line in lines)
    assert done.stderr == b""


def test_an_archive_cut_anywhere_is_refused() -> None:
    archive = cpio.write(ENTRIES)
    whole = archive.rindex(b"TRAILER!!!") + len("TRAILER!!!\0")
    for end in range(0, whole, 7):
        with pytest.raises(BuildError, match="damaged"):
            list(cpio.read(archive[:end]))


@pytest.mark.parametrize(
    ("offset", "change", "words"),
    [(0, b"070702", "no member header"), (14, b"zz", "not hexadecimal"), (54, b"ffffffff", "beyond the end")],
)
def test_a_bad_header_is_refused(offset: int, change: bytes, words: str) -> None:
    archive = bytearray(cpio.write(ENTRIES))
    archive[offset : offset + len(change)] = change
    with pytest.raises(BuildError, match=words):
        list(cpio.read(bytes(archive)))


def test_something_behind_the_trailer_is_refused() -> None:
    with pytest.raises(BuildError, match="behind the trailer"):
        list(cpio.read(cpio.write(ENTRIES) + b"x"))


@pytest.mark.parametrize("compression", ["zstd", "gzip", "none"])
def test_packing_is_undone_and_equal_bytes_pack_equal(compression: str) -> None:
    archive = cpio.write(ENTRIES)
    packed = pack.pack(archive, compression)
    assert pack.unpack(packed, compression) == archive
    assert pack.pack(archive, compression) == packed


@pytest.mark.parametrize("compression", ["zstd", "gzip"])
def test_packed_bytes_that_are_cut_or_changed_are_refused(compression: str) -> None:
    packed = pack.pack(random.Random(2).randbytes(100_000), compression)
    for damaged in (packed[:-10], packed[:20], b"", packed[:5000] + b"\xff\x00" + packed[5002:]):
        with pytest.raises(BuildError):
            pack.unpack(damaged, compression)


def test_the_window_spares_the_memory_of_the_capture_kernel() -> None:
    import zstandard

    parameters = zstandard.get_frame_parameters(pack.pack(random.Random(3).randbytes(20 << 20), "zstd"))
    assert parameters.window_size <= 8 << 20
    assert parameters.has_checksum


def test_the_packing_is_one_the_kernel_undoes() -> None:
    assert pack.choose({"CONFIG_RD_ZSTD": "y", "CONFIG_RD_GZIP": "y"}) == "zstd"
    assert pack.choose({"CONFIG_RD_GZIP": "y"}) == "gzip"
    assert pack.choose({}) == "none"
    assert pack.choose(None) == "none"
