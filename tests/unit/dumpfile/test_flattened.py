# SPDX-License-Identifier: GPL-2.0-or-later
"""The flattened format: what is sent is read, in any order, cut anywhere, damaged anyhow."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdumpd.dumpfile.codecs import Buffer
from kdumpd.dumpfile.flattened import HEADER_SIZE, FlattenedFile, FlattenedSink, check_header, stream_records
from kdumpd.dumpfile.stored import open_stored
from kdumpd.errors import DumpFormatError, UnsupportedError

WRITES = st.lists(st.tuples(st.integers(0, 3000), st.binary(min_size=1, max_size=300)), max_size=12)


class Memory:
    """A stream into memory."""

    name = "memory"

    def __init__(self) -> None:
        self.data = bytearray()

    def send(self, *parts: Buffer) -> None:
        for part in parts:
            self.data += part

    def sync(self) -> None: ...


def flatten(writes: list[tuple[int, bytes]], *, end: bool = True) -> bytes:
    stream = Memory()
    sink = FlattenedSink(stream)
    for offset, data in writes:
        sink.write_at(offset, data)
    if end:
        sink.end()
    return bytes(stream.data)


def plain(writes: list[tuple[int, bytes]]) -> bytes:
    out = bytearray(max((offset + len(data) for offset, data in writes), default=0))
    for offset, data in writes:
        out[offset : offset + len(data)] = data
    return bytes(out)


def stored(folder: Path, raw: bytes) -> FlattenedFile:
    path = folder / "flat"
    path.write_bytes(raw)
    found = open_stored(path)
    assert isinstance(found, FlattenedFile)
    return found


@settings(max_examples=150)
@given(writes=WRITES, offset=st.integers(0, 3500), size=st.integers(0, 4000))
def test_any_writes_are_read_as_from_a_plain_file(
    writes: list[tuple[int, bytes]], offset: int, size: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    file = stored(tmp_path_factory.mktemp("flat"), flatten(writes))
    expected = plain(writes)
    assert file.complete
    assert file.size == len(expected)
    assert file.read_at(offset, size) == expected[offset : offset + size]
    assert file.read_at(0, file.size) == expected
    file.close()


WRITTEN = [(100, b"a" * 50), (0, b"b" * 100), (150, b"c" * 700), (4096, b"d")]


def test_every_cut_is_incomplete_and_holds_what_came(tmp_path: Path) -> None:
    whole = flatten(WRITTEN)
    for size in range(HEADER_SIZE, len(whole)):
        file = stored(tmp_path, whole[:size])
        assert not file.complete
        held = file.read_at(0, file.size)
        assert all(byte in (0, wanted) for byte, wanted in zip(held, plain(WRITTEN), strict=False))
        file.close()
    for size in (0, 15):
        (tmp_path / "flat").write_bytes(whole[:size])
        with contextlib.closing(open_stored(tmp_path / "flat")) as file:
            assert not isinstance(file, FlattenedFile)
    for size in (16, 40, HEADER_SIZE - 1):
        (tmp_path / "flat").write_bytes(whole[:size])
        with pytest.raises(DumpFormatError, match="ends inside its header"):
            open_stored(tmp_path / "flat")


@settings(max_examples=300)
@given(st.binary(max_size=64))
def test_records_of_junk_are_a_sentence(junk: bytes) -> None:
    try:
        for _, pieces in stream_records(io.BytesIO(junk).read, "stdin"):
            for _ in pieces:
                pass
    except EOFError:
        return
    except DumpFormatError as error:
        assert str(error).startswith("stdin has a record of")


def test_a_stream_is_taken_apart_record_by_record() -> None:
    read = io.BytesIO(flatten(WRITTEN)[HEADER_SIZE:]).read
    assert [(offset, b"".join(pieces)) for offset, pieces in stream_records(read, "stdin")] == WRITTEN


@pytest.mark.parametrize("at", [16, 24])
def test_another_version_is_refused(at: int) -> None:
    raw = bytearray(flatten([]))
    raw[at + 7] = 9
    with pytest.raises(DumpFormatError, match="which is not read"):
        check_header(bytes(raw[:HEADER_SIZE]), "stdin")


def test_a_stream_has_no_way_back() -> None:
    sink = FlattenedSink(Memory())
    assert not sink.rewritable
    sink.reserve(1 << 60)
    with pytest.raises(UnsupportedError):
        sink.read_at(0, 1)
