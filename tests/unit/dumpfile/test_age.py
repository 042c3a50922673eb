# SPDX-License-Identifier: GPL-2.0-or-later
"""What is encrypted here is what age(1) decrypts, and the other way round; whatever is damaged or cut is noticed."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_flattened import Memory

from kdumpd.config.age_keys import identity_key, identity_text, recipient_key, recipient_text
from kdumpd.dumpfile.age import MAX_HEADER, find_file_key, make_header, read_header
from kdumpd.dumpfile.codecs import Buffer
from kdumpd.dumpfile.reader import DiskdumpReader
from kdumpd.dumpfile.sealed import CHUNK, SEALED_CHUNK, SealedFile, SealedStream, known_key, try_out
from kdumpd.dumpfile.stored import open_plain, open_stored
from kdumpd.errors import DumpFormatError, KdumpError, NoSpaceError, NotFoundError, TargetError, UnsupportedError

SIZES = [0, 1, 15, 16, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK - 1, 2 * CHUNK, 2 * CHUNK + 1, 5 * CHUNK + 777]


class Keys:
    """A pair of age-keygen, and the file that it lies in."""

    def __init__(self, folder: Path, name: str) -> None:
        self.file = folder / name
        subprocess.run(["age-keygen", "-o", self.file], capture_output=True, check=True)
        self.private = identity_key(self.file.read_text().splitlines()[-1])
        done = subprocess.run(["age-keygen", "-y", self.file], capture_output=True, text=True, check=True)
        self.text = done.stdout.strip()
        self.public = recipient_key(self.text)


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    return Keys(tmp_path_factory.mktemp("keys"), "key.txt")


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    return Keys(tmp_path_factory.mktemp("keys"), "other.txt")


def seal(data: bytes, *recipients: bytes, pieces: int = 50_000) -> bytes:
    """`data` encrypted, sent in pieces."""
    out = Memory()
    stream = SealedStream(out, recipients)
    for at in range(0, len(data), pieces):
        stream.send(data[at : at + pieces])
    stream.end()
    return bytes(out.data)


def unseal(path: Path, *identities: bytes) -> tuple[bytes, bool]:
    """What can be read from front to back, and whether it is all. Raises KdumpError for damage."""
    with contextlib.closing(open_plain(path)) as sealed:
        file = SealedFile(sealed, lambda header, name: find_file_key(header, identities, name))
        data = b""
        while piece := file.read_at(len(data), CHUNK):
            data += piece
        assert len(data) == file.size
        return data, file.complete


def age(*words: str | Path, data: bytes) -> bytes:
    return subprocess.run(["age", *map(str, words)], input=data, capture_output=True, check=True).stdout


@pytest.mark.parametrize("size", SIZES)
def test_age_decrypts_ours_and_we_decrypt_theirs(size: int, keys: Keys, others: Keys, tmp_path: Path) -> None:
    data = os.urandom(size)
    ours = seal(data, others.public, keys.public)
    for who in (keys, others):
        assert age("-d", "-i", who.file, data=ours) == data
    (tmp_path / "ours").write_bytes(ours)
    assert unseal(tmp_path / "ours", others.private) == (data, True)
    (tmp_path / "theirs").write_bytes(age("-r", others.text, "-r", keys.text, data=data))
    assert unseal(tmp_path / "theirs", keys.private) == (data, True)


@settings(max_examples=60)
@given(
    pieces=st.lists(st.integers(0, 3 * CHUNK), max_size=6), reads=st.lists(st.tuples(st.integers(0), st.integers(0)))
)
def test_any_pieces_are_read_at_any_offset(
    pieces: list[int], reads: list[tuple[int, int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    out = Memory()
    public = recipient_key(recipient_text(bytes([9, *bytes(31)])))
    stream = SealedStream(out, [public])
    data = os.urandom(sum(pieces))
    at = 0
    for size in pieces:
        middle = at + size // 2
        stream.send(data[at:middle], memoryview(data)[middle : at + size])
        at += size
    stream.end()
    path = tmp_path_factory.mktemp("age") / "file"
    path.write_bytes(out.data)
    file = SealedFile(open_plain(path), known_key(stream.file_key))
    assert file.complete
    assert file.size == len(data)
    for offset, size in reads:
        offset, size = offset % (len(data) + 9), size % (4 * CHUNK)
        assert file.read_at(offset, size) == data[offset : offset + size]
    file.close()


def fails(path: Path, raw: bytes, who: Keys, data: bytes) -> str:
    """What is said of a file that is not what was written; what is read of it is right in any case."""
    path.write_bytes(raw)
    try:
        found, complete = unseal(path, who.private)
    except KdumpError as error:
        return error.sentence
    assert data.startswith(found)
    assert not complete
    return "cut"


def test_every_byte_that_changes_is_noticed(keys: Keys, tmp_path: Path) -> None:
    """All of the header and of the borders of chunks, and one byte of eleven elsewhere."""
    data = os.urandom(CHUNK + 500)
    raw = seal(data, keys.public)
    start = raw.index(b"\n--- ") + 1 + 4 + 43 + 1
    borders = {start + 16 + SEALED_CHUNK + shift for shift in range(-20, 20)}
    for at in sorted({*range(start + 40), *borders, *range(0, len(raw), 211), *range(len(raw) - 20, len(raw))}):
        damaged = bytearray(raw)
        damaged[at] ^= 1 << at % 8
        said = fails(tmp_path / "file", bytes(damaged), keys, data)
        assert "damaged" in said or "not encrypted" in said or "ends inside" in said or said == "cut", (at, said)


def test_every_bit_of_a_small_file_counts(keys: Keys, tmp_path: Path) -> None:
    data = b"the plain text"
    raw = seal(data, keys.public)
    for bit in range(len(raw) * 8):
        damaged = bytearray(raw)
        damaged[bit // 8] ^= 1 << bit % 8
        assert fails(tmp_path / "file", bytes(damaged), keys, data)


def test_every_cut_leaves_what_came_and_is_no_success(keys: Keys, tmp_path: Path) -> None:
    data = os.urandom(3 * CHUNK + 9)
    raw = seal(data, keys.public)
    start = len(raw) - (3 * SEALED_CHUNK + 9 + 16)
    path = tmp_path / "file"
    for border in (start, *(start + SEALED_CHUNK * number for number in range(1, 4)), len(raw)):
        for size in (border - 17, border - 16, border - 1, border, border + 1, border + 16):
            if size >= len(raw):
                continue
            path.write_bytes(raw[:size])
            if size < start - 16:
                assert "ends inside its header" in fails(path, raw[:size], keys, data)
                continue
            found, complete = unseal(path, keys.private)
            assert not complete
            assert found == data[: max(0, size - start) // SEALED_CHUNK * CHUNK]
    for size in range(start - 16):
        said = fails(path, raw[:size], keys, data)
        assert "ends inside its header" in said or "is not encrypted" in said


def test_chunks_cannot_be_moved_lost_or_added(keys: Keys, tmp_path: Path) -> None:
    data = os.urandom(3 * CHUNK)
    raw = seal(data, keys.public)
    start = len(raw) - 3 * SEALED_CHUNK
    head, first, second, last = raw[:start], *(raw[start + n * SEALED_CHUNK :][:SEALED_CHUNK] for n in range(3))
    other = seal(data, keys.public)
    for chunks in (
        [second, first, last],
        [first, last],
        [second, last],
        [first, second, second, last],
        [first, second, last, b"junk"],
        [first, second, last, last],
        [first, second, last, bytes(SEALED_CHUNK)],
        [first, other[start + SEALED_CHUNK :][:SEALED_CHUNK], last],
    ):
        assert fails(tmp_path / "file", head + b"".join(chunks), keys, data)
    with pytest.raises(subprocess.CalledProcessError):
        age("-d", "-i", keys.file, data=head + first + last)


def test_the_wrong_key_is_a_sentence(keys: Keys, others: Keys, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(seal(b"x", keys.public))
    with pytest.raises(NotFoundError, match="was not encrypted to any of these keys"):
        unseal(path, others.private)
    with pytest.raises(NotFoundError, match="was not encrypted to any of these keys"):
        unseal(path)
    assert unseal(path, others.private, keys.private) == (b"x", True)
    open_stored(path).close()  # as it is
    with pytest.raises(DumpFormatError, match="is encrypted"):
        DiskdumpReader(path)


def test_what_others_wrap_in_other_ways_is_left_alone(keys: Keys, tmp_path: Path) -> None:
    """A key of ssh beside ours; and nothing but a passphrase or a key of ssh."""
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "ssh"], check=True)
    public = (tmp_path / "ssh.pub").read_text()
    (tmp_path / "file").write_bytes(age("-r", public, "-r", keys.text, data=b"x"))
    assert unseal(tmp_path / "file", keys.private) == (b"x", True)
    (tmp_path / "file").write_bytes(age("-r", public, data=b"x"))
    with pytest.raises(NotFoundError, match="not encrypted to a key of age but by ssh-ed25519"):
        unseal(tmp_path / "file", keys.private)


@settings(max_examples=300)
@given(st.binary(max_size=300))
def test_junk_for_a_header_is_a_sentence(junk: bytes) -> None:
    for raw in (junk, b"age-encryption.org/v1\n" + junk, b"age-encryption.org/v1\n-> X25519 " + junk):
        with pytest.raises(DumpFormatError, match=r"^FILE |^the header of FILE is damaged"):
            read_header(raw, "FILE")


def test_a_header_has_a_limit() -> None:
    raw = b"age-encryption.org/v1\n" + b"-> x\nAAAA\n" * MAX_HEADER
    with pytest.raises(DumpFormatError, match="longer than any header"):
        read_header(raw[:MAX_HEADER], "FILE")
    with pytest.raises(ValueError, match="nobody"):
        make_header(bytes(16), [])


class Full(Memory):
    """Takes so many pieces, and one that fails in between."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room

    def send(self, *parts: Buffer) -> None:
        self.room -= 1
        if self.room == 0:
            super().send(parts[0][:100])
            raise NoSpaceError("no room")
        super().send(*parts)


def test_behind_a_gap_nothing_is_written(keys: Keys, tmp_path: Path) -> None:
    """Whoever goes on after an error would write what nobody can read."""
    out = Full(3)
    stream = SealedStream(out, [keys.public])
    data = os.urandom(4 * CHUNK)
    stream.send(data[: CHUNK + 1])
    with pytest.raises(NoSpaceError):
        stream.send(data[CHUNK + 1 :])
    size = len(out.data)
    for _ in range(2):
        with pytest.raises(TargetError, match="an earlier part failed"):
            stream.send(data)
    with pytest.raises(TargetError, match="an earlier part failed"):
        stream.end()
    assert len(out.data) == size
    (tmp_path / "file").write_bytes(out.data)
    assert unseal(tmp_path / "file", keys.private) == (data[:CHUNK], False)


def test_nothing_follows_the_end(keys: Keys) -> None:
    stream = SealedStream(Memory(), [keys.public])
    stream.end()
    with pytest.raises(TargetError, match="complete"):
        stream.send(bytes(2 * CHUNK))


def test_two_files_of_the_same_bytes_have_nothing_in_common(keys: Keys) -> None:
    first, second = seal(bytes(1000), keys.public), seal(bytes(1000), keys.public)
    assert first[40:80] != second[40:80]
    assert first[-1000:] != second[-1000:]
    assert identity_text(keys.private).encode() not in first


def test_the_library_is_tried_out(monkeypatch: pytest.MonkeyPatch) -> None:
    try_out()
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.ciphers.aead", None)
    with pytest.raises(UnsupportedError, match="without the Python module cryptography"):
        try_out()
