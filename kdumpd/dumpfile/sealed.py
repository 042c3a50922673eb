# SPDX-License-Identifier: GPL-2.0-or-later
"""The payload of an age file: encrypted while it is written, front to back, and read again at any offset.

    header (dumpfile.age) | 16 random bytes | chunk, chunk, ... last chunk

A chunk is 64 KiB of plaintext, the last one less or as much, by ChaCha20-Poly1305 with its tag of 16 bytes behind it.
Its nonce is its number and whether it is the last (C2SP age, STREAM): a chunk that was changed, moved or taken from
another file is noticed when it is read, and so is a file that ends too early.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from kdumpd.config.age_keys import KEY_SIZE
from kdumpd.dumpfile.age import (
    FILE_KEY_SIZE,
    MAX_HEADER,
    TAG_SIZE,
    Header,
    check_header,
    derive_key,
    make_header,
    need_library,
    read_header,
)
from kdumpd.dumpfile.codecs import Buffer
from kdumpd.dumpfile.sink import Sink, Stream
from kdumpd.errors import DumpFormatError, TargetError, UnsupportedError

if TYPE_CHECKING:
    from kdumpd.dumpfile.stored import Stored

CHUNK = 64 << 10
SEALED_CHUNK = CHUNK + TAG_SIZE
_NONCE = 16

FileKey = Callable[[Header, str], bytes]
"""Finds the key of the file with that header and name. Raises KdumpError."""


def known_key(file_key: bytes) -> FileKey:
    """For who has the key of the file itself, as long as he writes it."""

    def find(header: Header, source: str) -> bytes:
        check_header(header, file_key, source)
        return file_key

    return find


class FileStream:
    """A Stream into a Sink, from its offset 0 on. `sent` counts bytes, `sha256` is of all of them."""

    def __init__(self, sink: Sink, *, checksum: bool = True) -> None:
        self.name = sink.name
        self.sent = 0
        self._sink = sink
        self._digest = hashlib.sha256() if checksum else None

    def send(self, *parts: Buffer) -> None:
        """All of `parts` in their order, or a KdumpError."""
        self._sink.write_parts(self.sent, parts)
        for part in parts:
            self.sent += len(part)
            if self._digest is not None:
                self._digest.update(part)

    def sync(self) -> None:
        """As the sink does it."""
        self._sink.sync()

    @property
    def sha256(self) -> str | None:
        """Of what was sent; None if no checksum was asked for."""
        return None if self._digest is None else self._digest.hexdigest()


class SealedStream:
    """A Stream that encrypts what it sends on to another one, for `recipients` (32 bytes of a public key each).

    Up to 64 KiB wait here for their chunk to become full. After an error nothing more is sent: what is behind a gap
    cannot be read. `file_key` opens this one file and is to be forgotten with the object.
    """

    def __init__(self, stream: Stream, recipients: Sequence[bytes]) -> None:
        """Sends the header. Raises UnsupportedError where the library is missing."""
        need_library()
        from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

        self.name = stream.name
        self.file_key = os.urandom(FILE_KEY_SIZE)
        nonce = os.urandom(_NONCE)
        self._stream = stream
        self._cipher = ChaCha20Poly1305(derive_key(self.file_key, nonce, b"payload"))
        self._waiting = bytearray()
        self._number = 0
        self._over: str | None = None
        self._send([make_header(self.file_key, recipients), nonce])

    def send(self, *parts: Buffer) -> None:
        """All of `parts` in their order, or a KdumpError."""
        for part in parts:
            self._waiting += part
        # A full chunk stays here until there is another byte: it could be the last.
        count = max(0, len(self._waiting) - 1) // CHUNK
        if count:
            with memoryview(self._waiting) as waiting:
                sealed = [self._seal(bytes(waiting[at : at + CHUNK])) for at in range(0, count * CHUNK, CHUNK)]
            del self._waiting[: count * CHUNK]
            self._send(sealed)

    def sync(self) -> None:
        """Returns when all full chunks are as safe as the stream can make them. May run beside `send`."""
        self._stream.sync()

    def end(self) -> None:
        """Sends the last chunk, without which the file counts as cut, and waits for all to be safe."""
        sealed = self._seal(bytes(self._waiting), last=True)
        self._waiting.clear()
        self._send([sealed])
        self._over = "it is complete"
        self._stream.sync()

    def _seal(self, data: bytes, *, last: bool = False) -> bytes:
        sealed = self._cipher.encrypt(_chunk_nonce(self._number, last=last), data, None)
        self._number += 1
        return sealed

    def _send(self, parts: list[bytes]) -> None:
        if self._over is not None:
            raise TargetError(f"{self.name} cannot be written any more: {self._over}")
        try:
            self._stream.send(*parts)
        except BaseException as error:
            self._over = f"an earlier part failed ({error})"
            raise


class SealedFile:
    """An age file as the plaintext that it holds (dumpfile.stored.Stored).

    Chunks are authenticated in their order: who has read a byte knows that all before it are what was written, and that
    each was looked at once. `complete` is whether the last chunk says that it is the last; without it `size` is what
    came before the cut.
    """

    def __init__(self, file: Stored, find_key: FileKey) -> None:
        """Takes `file` over. Raises DumpFormatError when it is no such file, and what `find_key` raises."""
        need_library()
        from cryptography.exceptions import InvalidTag
        from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

        self.name = file.name
        self._file = file
        self._invalid: type[Exception] = InvalidTag
        header = read_header(file.read_at(0, MAX_HEADER), file.name)
        file_key = find_key(header, file.name)
        nonce = file.read_at(header.size, _NONCE)
        self._start = header.size + _NONCE
        self._cipher = ChaCha20Poly1305(derive_key(file_key, nonce, b"payload"))
        self._known = 0
        self._held: tuple[int, bytes] = (-1, b"")

        length = max(0, file.size - self._start)
        count, rest = divmod(length, SEALED_CHUNK)
        self._last = count if rest else count - 1
        end = None if self._last < 0 else self._open(self._last, last=True)
        # The empty last chunk is that of an empty file alone.
        self.complete = end is not None and (len(end) > 0 or self._last == 0)
        self.size = self._last * CHUNK + len(end) if self.complete and end is not None else count * CHUNK

    def read_at(self, offset: int, size: int) -> bytes:
        """Up to `size` bytes of plaintext from `offset`; fewer at the end. Raises DumpFormatError where the file is not
        what was written."""
        end = min(offset + size, self.size)
        if offset < 0 or offset >= end:
            return b""
        first, last = offset // CHUNK, (end - 1) // CHUNK
        for number in range(self._known, first):
            self._chunk(number)
        data = b"".join(self._chunk(number) for number in range(first, last + 1))
        return data[offset - first * CHUNK : end - first * CHUNK]

    def close(self) -> None:
        """Closing twice is harmless."""
        self._file.close()

    def _chunk(self, number: int) -> bytes:
        if self._held[0] != number:
            data = self._open(number, last=self.complete and number == self._last)
            if data is None:
                raise DumpFormatError(
                    f"{self.name} is damaged at byte {self._start + number * SEALED_CHUNK}: what is there is not what "
                    f"was written; the {number * CHUNK} bytes before are"
                )
            self._held = (number, data)
            self._known = max(self._known, number + 1)
        return self._held[1]

    def _open(self, number: int, *, last: bool) -> bytes | None:
        sealed = self._file.read_at(self._start + number * SEALED_CHUNK, SEALED_CHUNK)
        try:
            return self._cipher.decrypt(_chunk_nonce(number, last=last), sealed, None)
        except self._invalid:
            return None


def try_out() -> None:
    """Encrypts and decrypts a little, so that all that needs the library has been loaded. Raises UnsupportedError."""
    from kdumpd.dumpfile.age import find_file_key, public_key

    class Memory:
        name = "memory"
        complete = True

        def __init__(self) -> None:
            self.data = b""
            self.size = 0

        def send(self, *parts: Buffer) -> None:
            self.data += b"".join(parts)
            self.size = len(self.data)

        def read_at(self, offset: int, size: int) -> bytes:
            return self.data[offset : offset + size]

        def sync(self) -> None: ...

        def close(self) -> None: ...

    need_library()
    memory, private, text = Memory(), os.urandom(KEY_SIZE), bytes(range(256))
    stream = SealedStream(memory, [public_key(private)])
    stream.send(text)
    stream.end()
    file = SealedFile(memory, lambda header, name: find_file_key(header, [private], name))
    if not file.complete or file.read_at(0, file.size) != text:
        raise UnsupportedError("the Python module cryptography does not decrypt what it encrypted")


def _chunk_nonce(number: int, *, last: bool) -> bytes:
    return number.to_bytes(11, "big") + (b"\x01" if last else b"\0")
