# SPDX-License-Identifier: GPL-2.0-or-later
"""A link to a server that may break off and be made again: what was not acknowledged is sent once more.

Writes are under way many at a time, up to a window, and each is kept until the server acknowledged it: writing the
same bytes to the same place twice does no harm. Attempts to make the link again are made with growing pauses, for a
bounded time; what is refused for good (the server's key, ours) is never tried again.
"""

from __future__ import annotations

import collections
import threading
import time
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from kdumpd.dumpfile.codecs import Buffer
from kdumpd.errors import TargetError
from kdumpd.targets.sftp import Kind, LinkLostError, Reply, ServerError, SftpSession, u64

GIVE_UP_SEC = 40.0
REPLY_SEC = 20.0
# Bytes and writes under way. OpenSSH's own window is 2 MiB: more would only make each sender wait.
WINDOW = 1536 << 10
_WRITES = 48
_FIRST_PAUSE_SEC = 0.5
_LONGEST_PAUSE_SEC = 8.0
_ALIVE_SEC = 1.0

T = TypeVar("T")
C = TypeVar("C", bound="Connection", covariant=True)


class RefusedError(TargetError):
    """The server, or we, refuse for good: a wrong host key, a key that it does not take."""


class Connection(Protocol):
    """What the link is made of, and made anew: an authenticated connection. `sftp` is None where there is no SFTP."""

    sftp: SftpSession | None

    def close(self) -> None:
        """Never fails, never waits."""


class Writer(Protocol):
    """A file on the other side."""

    def handle(self, session: SftpSession) -> bytes:
        """Its handle in this session; opens it if it is not open there."""

    def answered(self, write: Write, error: ServerError | None) -> None:
        """One of its writes was acknowledged, or refused."""


class Write:
    """Bytes on their way. `turn` is the call of the file that they belong to."""

    __slots__ = ("data", "file", "offset", "turn")

    def __init__(self, file: Writer, offset: int, data: Buffer, turn: int) -> None:
        self.file = file
        self.offset = offset
        self.data = data
        self.turn = turn


class Link(Generic[C]):
    """One server. `lock` is held for each operation: the dump's sync runs in a thread of its own.

    `made` counts how often the link was made. `give_up_sec` after a break it is given up, unless it went on by then.
    """

    def __init__(
        self,
        connect: Callable[[float], C],
        name: str,
        alive: Callable[[], None],
        give_up_sec: float = GIVE_UP_SEC,
    ) -> None:
        """`connect` gets the seconds it may take, and raises LinkLostError when another try makes sense."""
        self.lock = threading.RLock()
        self.made = 0
        self.name = name
        self._connect = connect
        self._alive = alive
        self._give_up_sec = give_up_sec
        self._connection: C | None = None
        self._dead: TargetError | None = None
        self._unsent: collections.deque[Write] = collections.deque()
        self._sent: dict[int, Write] = {}
        self._under_way = 0
        self._trouble: float | None = time.monotonic()
        self._told = 0.0
        self._pause = _FIRST_PAUSE_SEC

    @property
    def connection(self) -> C:
        """The connection, made now if there is none. Raises TargetError when it is given up."""
        with self.lock:
            if self._dead is not None:
                raise self._dead
            if self._connection is None:
                self._reconnect()
            assert self._connection is not None
            return self._connection

    @property
    def session(self) -> SftpSession:
        """The conversation. Raises TargetError when the link is given up, or the server has none."""
        found = self.connection.sftp
        if found is None:
            raise TargetError(f"{self.name} has no SFTP any more")
        return found

    def _reconnect(self) -> None:
        while True:
            if self._trouble is None:
                self._trouble = time.monotonic()
            left = self._give_up_sec - (time.monotonic() - self._trouble)
            try:
                connection = self._connect(max(1.0, min(left, REPLY_SEC)))
                if connection.sftp is not None:
                    connection.sftp.on_other = self._answer
                    connection.sftp.on_wait = self._alive
                self._connection = connection
                self.made += 1
                return
            except RefusedError as error:
                self._dead = error
                raise
            except LinkLostError as error:
                self._wait(error)

    def _wait(self, error: LinkLostError) -> None:
        """A pause before the next attempt. Raises TargetError when there is to be none."""
        self._alive()
        now = time.monotonic()
        self._trouble = now if self._trouble is None else self._trouble
        if now - self._trouble + self._pause > self._give_up_sec:
            what = "broke off and did not come back" if self.made else "was not made"
            self._dead = TargetError(
                f"the connection to {self.name} {what} within {self._give_up_sec:.0f} s: {error}",
                hint="is the server up, and does the network reach it?",
            )
            raise self._dead from error
        time.sleep(self._pause)
        self._pause = min(self._pause * 2, _LONGEST_PAUSE_SEC)

    def attempt(self, operation: Callable[[SftpSession], T]) -> T:
        """What `operation` returns; it is done again from its start when the link breaks off.

        Raises TargetError when the link is given up, and whatever else the operation raises.
        """
        with self.lock:
            while True:
                session = self.session
                try:
                    result = operation(session)
                except LinkLostError as error:
                    self.lose(error)
                    continue
                except ServerError:
                    self._went_on()
                    raise
                self._went_on()
                return result

    def lose(self, error: LinkLostError) -> None:
        """Gives the connection up; the next operation makes another one, after a pause."""
        with self.lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None
            self._unsent = collections.deque([*self._sent.values(), *self._unsent])
            self._sent.clear()
            self._under_way = 0
            self._wait(error)

    def _went_on(self) -> None:
        self._trouble, self._pause = None, _FIRST_PAUSE_SEC
        now = time.monotonic()
        if now - self._told >= _ALIVE_SEC:
            self._told = now
            self._alive()

    def write(self, write: Write) -> None:
        """Sends it, when there is room in the window."""
        with self.lock:
            self._unsent.append(write)
            self._push(WINDOW)

    def drain(self) -> None:
        """Returns when all writes were answered."""
        self._push(0)

    def _push(self, most: int) -> None:
        """Sends what was not sent, and takes answers until no more than `most` bytes are under way."""
        with self.lock:
            while self._unsent or (self._sent and self._under_way > most):
                session = self.session
                try:
                    self._send(session)
                    if self._unsent or self._under_way > most:
                        self._answer(session.reply())
                except LinkLostError as error:
                    self.lose(error)

    def _send(self, session: SftpSession) -> None:
        """As much as the window has room for."""
        while self._unsent and self._under_way < WINDOW and len(self._sent) < _WRITES:
            write = self._unsent[0]
            try:
                handle = write.file.handle(session)
            except ServerError as error:
                self._unsent.popleft()
                write.file.answered(write, error)
                continue
            except TargetError:
                # The file is of no use any more; what is meant for others is still to be sent.
                self._unsent = collections.deque(each for each in self._unsent if each.file is not write.file)
                raise
            size = len(write.data).to_bytes(4, "big")
            number = session.request(Kind.WRITE, *_string(handle), u64(write.offset), size, write.data)
            self._sent[number] = self._unsent.popleft()
            self._under_way += len(write.data)

    def _answer(self, reply: Reply) -> None:
        write = self._sent.get(reply.number)
        if write is None:
            raise LinkLostError("the server answered what it was not asked")
        refusal = None
        try:
            reply.status()
        except ServerError as error:
            refusal = error
        del self._sent[reply.number]
        self._under_way -= len(write.data)
        write.file.answered(write, refusal)
        self._went_on()

    def close(self) -> None:
        """Ends the link; nothing is sent any more."""
        with self.lock:
            if self._dead is None:
                self._dead = TargetError(f"the connection to {self.name} was closed")
            if self._connection is not None:
                self._connection.close()
                self._connection = None


def _string(data: bytes) -> tuple[bytes, bytes]:
    return len(data).to_bytes(4, "big"), data
