# SPDX-License-Identifier: GPL-2.0-or-later
"""The SFTP protocol, version 3, over any channel of bytes: requests go out, answers come back in whatever order.

After draft-ietf-secsh-filexfer-02 and OpenSSH's PROTOCOL, whose extensions (fsync, posix-rename, statvfs, limits) are
used where the server offers them. Written here, and not taken from a library, because a dump needs what libraries
leave out: many writes under way at any offset, each of whose answers is looked at, and a deadline for every answer.
"""

from __future__ import annotations

import dataclasses
import enum
import struct
import time
from collections.abc import Callable
from typing import Protocol

from kdumpd.dumpfile.codecs import Buffer

_VERSION = 3
_MAX_PACKET = 256 << 10  # what OpenSSH takes and sends at most
_SAFE_WRITE = 32 << 10  # what every server takes
_BEST_WRITE = 128 << 10
_HEAD = struct.Struct(">IBI")  # length, kind, number
_BEAT_SEC = 2.0  # how often somebody is told that an answer is waited for
_SEND = 32 << 10  # bytes that are handed to the channel at once


class Kind(enum.IntEnum):
    """Packets, by their number in the draft."""

    INIT = 1
    VERSION = 2
    OPEN = 3
    CLOSE = 4
    READ = 5
    WRITE = 6
    LSTAT = 7
    FSTAT = 8
    FSETSTAT = 10
    OPENDIR = 11
    REMOVE = 13
    MKDIR = 14
    RMDIR = 15
    REALPATH = 16
    STAT = 17
    RENAME = 18
    STATUS = 101
    HANDLE = 102
    DATA = 103
    NAME = 104
    ATTRS = 105
    EXTENDED = 200
    EXTENDED_REPLY = 201


class Status(enum.IntEnum):
    """What a server answers; everything that has no number of its own is FAILURE, also a full disk."""

    OK = 0
    EOF = 1
    NO_SUCH_FILE = 2
    PERMISSION_DENIED = 3
    FAILURE = 4
    BAD_MESSAGE = 5
    NO_CONNECTION = 6
    CONNECTION_LOST = 7
    OP_UNSUPPORTED = 8


READ, WRITE, CREATE, EXCLUSIVE = 0x1, 0x2, 0x8, 0x20  # pflags
_SIZE, _UIDGID, _PERMISSIONS, _TIMES = 0x1, 0x2, 0x4, 0x8  # flags of attributes


class LinkLostError(Exception):
    """The connection is of no use any more, and another one may be: its text says what happened."""


class ServerError(Exception):
    """The server refused a request: `status` is its reason, `text` its words."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.text = text


class Channel(Protocol):
    """A stream to the server and back, as paramiko has it. Whatever `send` and `recv` raise, the link is lost."""

    def send(self, s: bytes) -> int:
        """Sends some of the bytes and returns how many; 0 when the channel is closed."""

    def recv(self, nbytes: int) -> bytes:
        """Up to that many bytes; none at the end. TimeoutError when none came in time."""

    def settimeout(self, timeout: float | None) -> None:
        """Seconds for each of the two."""


@dataclasses.dataclass(frozen=True, slots=True)
class Attributes:
    """What the server says of a file; None is what it leaves out. `mode` as in stat(2), with the kind of file."""

    size: int | None
    mode: int | None


class Reply:
    """One answer; its fields are taken off one after the other."""

    def __init__(self, kind: int, number: int, body: memoryview) -> None:
        self.kind = kind
        self.number = number
        self._body = body

    def u32(self) -> int:
        """A number of 32 bits."""
        return int.from_bytes(self._take(4), "big")

    def u64(self) -> int:
        """A number of 64 bits."""
        return int.from_bytes(self._take(8), "big")

    def string(self) -> bytes:
        """Bytes with their length in front."""
        return bytes(self._take(self.u32()))

    @property
    def left(self) -> int:
        """Bytes that were not taken yet."""
        return len(self._body)

    def _take(self, size: int) -> memoryview:
        if size > len(self._body):
            raise LinkLostError("the server sent an answer that ends too early")
        taken, self._body = self._body[:size], self._body[size:]
        return taken

    def expect(self, kind: Kind) -> Reply:
        """Itself, if it is of `kind`. Raises ServerError when it is a refusal, LinkLostError when it makes no sense."""
        if self.kind == kind:
            return self
        if self.kind == Kind.STATUS:
            self.status()
        raise LinkLostError(f"the server sent an answer of kind {self.kind}, where {kind} belongs")

    def status(self) -> None:
        """Takes a status. Raises ServerError when it is not OK."""
        self.expect(Kind.STATUS)
        code = self.u32()
        text = self.string().decode(errors="replace") if self.left >= 4 else ""
        if code != Status.OK:
            raise ServerError(code, _words(code, text))

    def attributes(self) -> Attributes:
        """Takes the attributes of a file."""
        flags = self.u32()
        size = self.u64() if flags & _SIZE else None
        if flags & _UIDGID:
            self._take(8)
        mode = self.u32() if flags & _PERMISSIONS else None
        return Attributes(size, mode)


def _words(code: int, text: str) -> str:
    # The texts of a server are foreign: what could play with a terminal is left out.
    clean = "".join(char for char in text if char.isprintable())[:200]
    if clean and clean.lower() != "failure":
        return clean
    known = {int(Status.NO_SUCH_FILE): "no such file", int(Status.PERMISSION_DENIED): "permission denied"}
    return known.get(code, f"the server gives no reason (status {code})")


def string(data: bytes | str) -> bytes:
    """Bytes with their length in front, as they go out."""
    raw = data.encode("utf-8", "surrogateescape") if isinstance(data, str) else data
    return struct.pack(">I", len(raw)) + raw


def u32(value: int) -> bytes:
    """A number of 32 bits, as it goes out."""
    return struct.pack(">I", value)


def u64(value: int) -> bytes:
    """A number of 64 bits, as it goes out."""
    return struct.pack(">Q", value)


def attributes(*, size: int | None = None, mode: int | None = None) -> bytes:
    """Attributes to be set, as they go out."""
    flags = (_SIZE if size is not None else 0) | (_PERMISSIONS if mode is not None else 0)
    return u32(flags) + (u64(size) if size is not None else b"") + (u32(mode) if mode is not None else b"")


class SftpSession:
    """One conversation. Every method raises LinkLostError when no answer comes in time, or none that makes sense.

    `extensions` are those that the server offers; `write_size` is how many bytes a write may hold. Not for several
    threads at once.
    """

    def __init__(self, channel: Channel, reply_sec: float) -> None:
        """Says hello. `reply_sec` is how long an answer may take."""
        self._channel = channel
        self._reply_sec = reply_sec
        self._buffer = bytearray()
        self._number = 0
        self.on_other: Callable[[Reply], None] = _unexpected
        self.on_wait: Callable[[], None] = _nothing
        self._send(struct.pack(">IBI", 5, Kind.INIT, _VERSION))
        hello = self._packet(time.monotonic() + reply_sec)
        if len(hello) < 5 or hello[0] != Kind.VERSION:
            raise LinkLostError("the server does not speak SFTP")
        found = Reply(hello[0], 0, memoryview(hello)[5:])
        extensions = set()
        while found.left:
            extensions.add(found.string().decode(errors="replace"))
            found.string()
        self.extensions = frozenset(extensions)
        self.write_size = self._limit()

    def _limit(self) -> int:
        if "limits@openssh.com" not in self.extensions:
            return _SAFE_WRITE
        try:
            limits = self.call(Kind.EXTENDED, string("limits@openssh.com")).expect(Kind.EXTENDED_REPLY)
        except ServerError:
            return _SAFE_WRITE
        limits.u64()
        limits.u64()
        longest = limits.u64()
        return min(longest, _BEST_WRITE) if longest >= _SAFE_WRITE else _SAFE_WRITE

    def request(self, kind: Kind, *fields: Buffer) -> int:
        """Sends one and returns its number, which its answer will have."""
        self._number = (self._number + 1) & 0xFFFFFFFF
        size = 5 + sum(map(len, fields))
        self._send(b"".join((_HEAD.pack(size, kind, self._number), *fields)))
        return self._number

    def reply(self, wait_sec: float | None = None) -> Reply:
        """The next answer, whatever to."""
        packet = self._packet(time.monotonic() + (self._reply_sec if wait_sec is None else wait_sec))
        if len(packet) < 5:
            raise LinkLostError("the server sent an answer without a number")
        return Reply(packet[0], int.from_bytes(packet[1:5], "big"), memoryview(packet)[5:])

    def call(self, kind: Kind, *fields: Buffer, wait_sec: float | None = None) -> Reply:
        """Sends one and waits for its answer; answers to others go to `on_other`, and `on_wait` is called meanwhile."""
        number = self.request(kind, *fields)
        while True:
            found = self.reply(wait_sec)
            if found.number == number:
                return found
            self.on_other(found)

    def _send(self, data: bytes) -> None:
        view, sent = memoryview(data), 0
        try:
            self._channel.settimeout(self._reply_sec)
            while sent < len(view):
                count = self._channel.send(bytes(view[sent : sent + _SEND]))
                if count == 0:
                    raise LinkLostError("the server closed the connection")
                sent += count
        except TimeoutError as error:
            raise LinkLostError(f"the server took nothing for {self._reply_sec:.0f} s") from error
        except (OSError, EOFError) as error:
            raise LinkLostError(f"the connection broke off: {error}") from error

    def _packet(self, end: float) -> bytes:
        head = self._read(4, end)
        size = int.from_bytes(head, "big")
        if not 1 <= size <= _MAX_PACKET:
            raise LinkLostError(f"the server sent a packet of {size} bytes, which is no SFTP")
        return self._read(size, end)

    def _read(self, size: int, end: float) -> bytes:
        while len(self._buffer) < size:
            left = end - time.monotonic()
            try:
                self._channel.settimeout(max(0.01, min(left, _BEAT_SEC)))
                data = self._channel.recv(_SEND)
            except TimeoutError as error:
                if left <= _BEAT_SEC:
                    raise LinkLostError("the server does not answer any more") from error
                self.on_wait()
                continue
            except (OSError, EOFError) as error:
                raise LinkLostError(f"the connection broke off: {error}") from error
            if not data:
                raise LinkLostError("the server closed the connection")
            self._buffer += data
        taken = bytes(self._buffer[:size])
        del self._buffer[:size]
        return taken


def _nothing() -> None:
    """Nobody wants to know that an answer takes its time."""


def _unexpected(reply: Reply) -> None:
    raise LinkLostError(f"the server answered request {reply.number}, which was never sent")
