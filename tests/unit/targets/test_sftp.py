# SPDX-License-Identifier: GPL-2.0-or-later
"""The SFTP protocol against servers that answer anything at all."""

from __future__ import annotations

import contextlib
import struct
import time
from collections.abc import Sequence

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kdumpd.errors import DumpFormatError, TargetError
from kdumpd.targets.link import Link
from kdumpd.targets.remote import RemoteDirectory
from kdumpd.targets.remote_read import RemoteDump
from kdumpd.targets.sftp import Kind, LinkLostError, ServerError, SftpSession, Status, string, u32, u64

_EXTENSIONS = ("fsync@openssh.com", "posix-rename@openssh.com", "statvfs@openssh.com")
_HELLO = struct.pack(">BI", Kind.VERSION, 3) + b"".join(string(name) + string("1") for name in _EXTENSIONS)


class Answering:
    """A channel to a server that answers each request with the next of `bodies`, or as it should where that is None and
    when there is none left. A body is kind and fields; the number of the request is put between them.
    """

    def __init__(self, bodies: Sequence[bytes | None]) -> None:
        self._bodies = [*bodies]
        self._in = bytearray()
        self._out = bytearray()

    def settimeout(self, timeout: float | None) -> None: ...

    def send(self, s: bytes) -> int:
        self._in += s
        while len(self._in) >= 4 and len(self._in) >= 4 + (size := int.from_bytes(self._in[:4], "big")):
            packet = bytes(self._in[4 : 4 + size])
            del self._in[: 4 + size]
            self._answer(packet)
        return len(s)

    def _answer(self, packet: bytes) -> None:
        if packet[0] == Kind.INIT:
            self._out += string(_HELLO)
            return
        body = self._bodies.pop(0) if self._bodies else None
        body = _usual(packet) if body is None else body
        self._out += string(body[:1] + packet[1:5] + body[1:])

    def recv(self, nbytes: int) -> bytes:
        data = bytes(self._out[:nbytes])
        del self._out[: len(data)]
        return data


def _usual(packet: bytes) -> bytes:
    if packet[0] in (Kind.STAT, Kind.LSTAT, Kind.FSTAT):
        is_folder = packet[0] == Kind.STAT and not packet.endswith((b"f", b"g"))
        return bytes([Kind.ATTRS]) + u32(5) + u64(8) + u32(0o40700 if is_folder else 0o100600)
    if packet[0] == Kind.EXTENDED and b"statvfs" in packet:
        return bytes([Kind.EXTENDED_REPLY]) + u64(1 << 12) * 11
    usual = {Kind.OPEN: bytes([Kind.HANDLE]) + string(b"h"), Kind.READ: bytes([Kind.DATA]) + string(b"abc" + bytes(5))}
    return usual.get(Kind(packet[0]), bytes([Kind.STATUS]) + u32(Status.OK))


class Connection:
    def __init__(self, sftp: SftpSession) -> None:
        self.sftp: SftpSession | None = sftp

    def close(self) -> None: ...


_numbers = st.integers(0, (1 << 32) - 1).map(u32)
_texts = st.binary(max_size=40).map(string)
_likely = st.one_of(
    st.builds(lambda code, text: bytes([Kind.STATUS]) + u32(code) + text, st.integers(0, 9), _texts),
    st.builds(lambda handle: bytes([Kind.HANDLE]) + handle, _texts),
    st.builds(lambda data: bytes([Kind.DATA]) + data, _texts),
    st.builds(
        lambda size, mode: bytes([Kind.ATTRS]) + u32(5) + u64(size) + u32(mode),
        st.integers(0, (1 << 64) - 1),
        st.sampled_from([0o100600, 0o40700, 0o100644, 0o120777, 0]),
    ),
    st.builds(lambda numbers: bytes([Kind.EXTENDED_REPLY]) + b"".join(numbers), st.lists(_numbers, max_size=22)),
    st.builds(lambda kind, rest: bytes([kind]) + rest, st.integers(0, 255), st.binary(max_size=60)),
)


@settings(max_examples=300)
@example([])
@given(st.lists(st.one_of(st.none(), st.none(), st.none(), _likely), max_size=30))
def test_a_server_that_answers_anything(bodies: list[bytes | None]) -> None:
    """Nothing but our own errors, and none at all where every answer is as it should be."""

    def connect(seconds: float) -> Connection:
        nonlocal used
        if used:
            raise LinkLostError("only once")
        used = True
        return Connection(SftpSession(Answering(bodies), 1.0))

    used = False
    link = Link(connect, "server", lambda: None, give_up_sec=0.0)
    allowed = (TargetError, DumpFormatError) if any(body is not None for body in bodies) else ()
    with contextlib.suppress(*allowed):
        directory = RemoteDirectory.create(link, "/a/b", "crash", lambda command, size: None)
        with directory.create_file("f") as file:
            file.reserve(100)
            file.write_parts(0, [b"abc", bytearray(5)])
            file.sync()
            file.read_at(0, 8)
            file.truncate(8)
        with contextlib.closing(RemoteDump(link, "/a/b/crash/f")) as dump:
            dump.read_at(0, 8)
        directory.rename("f", "g")
        directory.remove("g")
        directory.discard()


@pytest.mark.parametrize(
    ("hello", "words"),
    [
        (b"", "packet of 0 bytes"),
        (b"\x02", "does not speak SFTP"),
        (b"Welcome to the machine", "does not speak SFTP"),
        (struct.pack(">BI", Kind.VERSION, 3) + u32(1000), "ends too early"),
    ],
)
def test_what_is_no_sftp(hello: bytes, words: str) -> None:
    class Saying(Answering):
        def _answer(self, packet: bytes) -> None:
            self._out += string(hello)

    with pytest.raises(LinkLostError, match=words):
        SftpSession(Saying([]), 1.0)


def test_a_text_that_a_shell_printed_first_is_told_apart() -> None:
    class Chatty(Answering):
        def _answer(self, packet: bytes) -> None:
            self._out += b"Last login: today\r\n"

    with pytest.raises(LinkLostError, match="which is no SFTP"):
        SftpSession(Chatty([]), 1.0)


def test_a_slow_answer_is_waited_for_and_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """An fsync may take a minute and a half: whoever watches the collector hears of it meanwhile."""
    monkeypatch.setattr("kdumpd.targets.sftp._BEAT_SEC", 0.05)

    class Slow(Answering):
        waits = 0

        def recv(self, nbytes: int) -> bytes:
            if self.waits:
                self.waits -= 1
                time.sleep(0.05)
                raise TimeoutError
            return super().recv(nbytes)

    channel = Slow([])
    session = SftpSession(channel, 0.2)
    beats = []
    session.on_wait = lambda: beats.append(1)
    channel.waits = 10
    session.call(Kind.REMOVE, string("x"), wait_sec=5.0).status()
    assert len(beats) == 10
    channel.waits = 1000
    with pytest.raises(LinkLostError, match="does not answer any more"):
        session.call(Kind.REMOVE, string("x"))


def test_the_servers_words_do_not_reach_the_terminal_raw() -> None:
    session = SftpSession(Answering([bytes([Kind.STATUS]) + u32(4) + string(b"\x1b[2Jdisk quota exceeded\n")]), 1.0)
    with pytest.raises(ServerError) as caught:
        session.call(Kind.REMOVE, string("x")).status()
    assert caught.value.text == "[2Jdisk quota exceeded"
