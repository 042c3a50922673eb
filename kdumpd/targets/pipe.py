# SPDX-License-Identifier: GPL-2.0-or-later
"""A crash directory on a server that has a shell and no SFTP: each file goes through a pipe, the dump flattened.

There is no way back in a pipe: a connection that breaks off ends the dump. The flattened format's end record is sent
when the dump gets its final name, and the server has to say the size and the sha256 of all that it wrote before.
"""

from __future__ import annotations

import contextlib
import hashlib
import shlex
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Protocol, Self

from kdumpd.dumpfile.codecs import Buffer
from kdumpd.dumpfile.flattened import FlattenedSink
from kdumpd.dumpfile.manifest import INCOMPLETE_NAME
from kdumpd.errors import KdumpError, TargetError, UnsupportedError
from kdumpd.targets.sftp import Channel, LinkLostError

_PIECE = 32 << 10
_SEND_SEC = 45.0
_END_SEC = 100.0
_MAX_SAME_NAME = 100
# The user's own shell may be any: it only starts this one. A name is never part of the script.
_RECEIVE = (
    'umask 077; set -C; cat > "$1" && { sync "$1" 2>/dev/null || sync; };'
    ' wc -c < "$1"; sha256sum < "$1" 2>/dev/null || echo -'
)
_MAKE = 'umask 077; mkdir -p -- "$1" && mkdir -- "$1/$2" && echo made; test -d "$1/$2" && echo there'
_MOVE = 'mv -- "$1/$2" "$1/$3" && echo moved'
_REMOVE = 'rm -f -- "$1/$2"'

_NOTE = (
    "the server has no SFTP, so the dump went through a pipe: it is flattened (kdumpd-collect -R makes a plain one of"
    " it) and was not opened after it was written"
)


class PipeChannel(Channel, Protocol):
    """A command that runs on the server."""

    def shutdown_write(self) -> None:
        """Ends its input."""

    def close(self) -> None:
        """Ends it."""


class Shell(Protocol):
    """A server that runs commands; raises LinkLostError."""

    def channel(self, command: str) -> PipeChannel:
        """Starts one."""

    def run(self, command: str, alive: Callable[[], None]) -> tuple[int, bytes]:
        """Status and output of one."""

    def finish(self, channel: PipeChannel, alive: Callable[[], None], seconds: float) -> tuple[int, bytes]:
        """Status and output of one that was started."""


def _command(script: str, *words: str) -> str:
    return shlex.join(["sh", "-c", script, "sh", *words])


class PipeFile:
    """A file that is written from its start to its end (targets.target.StoredFile, dumpfile.sink.Stream)."""

    rewritable = False

    def __init__(self, shell: Shell, path: str, alive: Callable[[], None]) -> None:
        """Nothing is sent before there is something to send."""
        self.name = path.rpartition("/")[2]
        self._shell = shell
        self._path = path
        self._alive = alive
        self._channel: PipeChannel | None = None
        self._digest = hashlib.sha256()
        self._done = False
        self.sent = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            self.end()
        elif self._channel is not None:
            self._channel.close()

    def send(self, *parts: Buffer) -> None:
        """All of `parts` in their order. Raises TargetError."""
        try:
            if self._channel is None:
                self._channel = self._shell.channel(_command(_RECEIVE, self._path))
            self._channel.settimeout(_SEND_SEC)
            for part in parts:
                self._digest.update(part)
                view = memoryview(part).cast("B")
                while view:
                    count = self._channel.send(bytes(view[:_PIECE]))
                    if count == 0:
                        raise LinkLostError("the server ended the command")
                    self.sent += count
                    view = view[count:]
        except (LinkLostError, OSError, EOFError) as error:
            raise TargetError(f"{self.name} cannot be written after {self.sent} bytes: {error}") from error
        self._alive()

    def end(self) -> None:
        """Ends the file, once. Raises TargetError unless the server has all of it."""
        if self._done:
            return
        self._done = True
        self.send()
        assert self._channel is not None
        try:
            self._channel.shutdown_write()
            _, output = self._shell.finish(self._channel, self._alive, _END_SEC)
        except (LinkLostError, OSError, EOFError) as error:
            raise TargetError(f"{self.name} did not reach the server: {error}") from error
        size, digest, *_ = [*output.decode(errors="replace").split(), "", ""]
        if size != str(self.sent) or digest not in ("-", self._digest.hexdigest()):
            raise TargetError(
                f"the server did not keep {self.name}: {self.sent} bytes were sent, it has {size or 'none'}"
                + (" with other contents" if size == str(self.sent) else ""),
                hint="is its disk full?",
            )

    def write_at(self, offset: int, data: Buffer) -> None:
        """The next bytes; there is no going back."""
        if offset != self.sent:
            raise UnsupportedError(f"{self.name} is a stream: nothing can be written at {offset} after {self.sent}")
        self.send(data)

    def write_parts(self, offset: int, parts: Sequence[Buffer]) -> None:
        """The next bytes; there is no going back."""
        self.write_at(offset, b"")
        self.send(*parts)

    def read_at(self, offset: int, size: int) -> bytes:
        """Never: a stream has no way back."""
        raise UnsupportedError(f"{self.name} is a stream, from which nothing can be read back")

    def reserve(self, size: int) -> None:
        """A stream has no room to take beforehand."""

    def truncate(self, size: int) -> None:
        """A stream is as long as what was sent."""
        if size != self.sent:
            raise UnsupportedError(f"{self.name} is a stream, which cannot be cut to {size} bytes")

    def free_bytes(self) -> None:
        """Not known: the room is at the other end."""

    def scratch(self, size: int) -> None:
        """There is no place beside a stream."""

    def sync(self) -> None:
        """The server does it at the end."""


class PipeDump(FlattenedSink):
    """The dump as a stream of records. The end of its `with` block does not end it: PipeDirectory.rename does."""

    def __init__(self, file: PipeFile) -> None:
        super().__init__(file)
        self.file = file

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is not None:
            self.file.__exit__(kind, error, traceback)

    def truncate(self, size: int) -> None:
        """Never: a stream cannot be cut."""
        raise UnsupportedError(f"{self.name} is a stream, which cannot be cut to {size} bytes")


class PipeDirectory:
    """One new directory for one crash (targets.target.Store)."""

    def __init__(self, shell: Shell, server: str, path: str, alive: Callable[[], None]) -> None:
        """`path` is there and ours."""
        self.where = f"{server}:{path}"
        self.notes = [_NOTE]
        self._shell = shell
        self._path = path
        self._alive = alive
        self._dumps: dict[str, PipeDump] = {}

    @classmethod
    def create(cls, shell: Shell, server: str, directory: str, name: str, alive: Callable[[], None]) -> PipeDirectory:
        """Makes `directory`/`name`; another crash of the same name gets a number behind it. Raises TargetError."""
        for number in range(1, _MAX_SAME_NAME):
            candidate = name if number == 1 else f"{name}-{number}"
            _, output = shell.run(_command(_MAKE, directory, candidate), alive)
            words = output.split()
            if b"made" in words:
                return cls(shell, server, f"{directory.rstrip('/')}/{candidate}", alive)
            if b"there" not in words:
                raise TargetError(
                    f"{server} has neither SFTP nor a shell that makes {directory}/{candidate}",
                    hint="enable its SFTP (Subsystem sftp internal-sftp), or let the account write there",
                )
        raise TargetError(f"{directory} on {server} already holds {_MAX_SAME_NAME} crashes named {name}")

    def create_file(self, name: str) -> PipeFile | PipeDump:
        """A new file, 0600."""
        file = PipeFile(self._shell, f"{self._path}/{name}", self._alive)
        if name != INCOMPLETE_NAME:
            return file
        self._dumps[name] = PipeDump(file)
        return self._dumps[name]

    def stored(self, name: str) -> None:
        """There is no way back."""

    def digest(self, name: str, offset: int, size: int) -> None:
        """The sha256 of the stream is compared, not that of the dump inside."""

    def remove(self, name: str) -> None:
        """Takes a file away; nothing when that fails."""
        self._dumps.pop(name, None)
        try:
            self._shell.run(_command(_REMOVE, self._path, name), self._alive)
        except (LinkLostError, KdumpError):
            return

    def discard(self) -> None:
        """Takes the folder away if it is empty; nothing when that fails."""
        with contextlib.suppress(LinkLostError, KdumpError):
            self._shell.run(_command('rmdir -- "$1"', self._path), self._alive)

    def rename(self, old: str, new: str) -> None:
        """Gives a file its final name, when the server has confirmed all of it."""
        dump = self._dumps.pop(old, None)
        if dump is not None:
            dump.end()
            dump.file.end()
        try:
            _, output = self._shell.run(_command(_MOVE, self._path, old, new), self._alive)
        except LinkLostError as error:
            raise TargetError(f"{self._path}/{old} cannot be renamed to {new}: {error}") from error
        if b"moved" not in output.split():
            raise TargetError(f"{self._path}/{old} cannot be renamed to {new}: the server's mv failed")

    def sync(self) -> None:
        """Each file was synced at its end."""
