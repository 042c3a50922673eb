# SPDX-License-Identifier: GPL-2.0-or-later
"""A crash directory that is reached over SFTP: private from the first byte, as durable as the server makes it.

A file is written at any offset, so that the dump lies there as it is and can be opened at every moment. A refused
write is known only after further ones were sent. Near the end of the room, where that is to be expected, each call
waits for its answers, so that the dump's writer knows which pages found no room. A write that was refused behind the
writer's back makes the file useless from there on: it never syncs again, so no descriptor points at what is missing.
"""

from __future__ import annotations

import hashlib
import shlex
import stat
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

from kdumpd.dumpfile.codecs import Buffer
from kdumpd.errors import KdumpError, NoSpaceError, TargetError
from kdumpd.targets import sftp
from kdumpd.targets.files import DIRECTORY_MODE, FILE_MODE
from kdumpd.targets.link import Connection, Link, Write
from kdumpd.targets.remote_read import READ_BYTES, RemoteDump, attributes_of, open_file, read_file
from kdumpd.targets.sftp import Attributes, Kind, ServerError, SftpSession, Status

_FSYNC, _RENAME, _STATVFS = "fsync@openssh.com", "posix-rename@openssh.com", "statvfs@openssh.com"
_FSYNC_SEC = 100.0  # below what the capture kernel's supervisor takes for silence
_MAX_SAME_NAME = 1000
_LOOK_AT_ROOM = 16 << 20
_LITTLE_ROOM = 64 << 20
_NO_ROOM = 4 << 20

# (shell command, bytes of its output) of the server, or None where it runs no commands.
Run = Callable[[str, int], bytes | None]


def refused(error: ServerError, what: str) -> TargetError:
    """The server's refusal as a sentence."""
    return TargetError(f"{what}: {error.text}")


class RemoteFile:
    """A file on the server (targets.target.StoredFile)."""

    rewritable = True

    def __init__(self, link: Link[Connection], path: str) -> None:
        """Makes it, 0600. Raises TargetError."""
        self.name = path.rpartition("/")[2]
        self.path = path
        self.size = 0
        self._link = link
        self._handle: tuple[int, bytes] | None = None
        self._acknowledged = 0  # the file cannot be shorter than this
        self._turn = 0
        self._failures: list[tuple[Write, ServerError]] = []
        self._broken: TargetError | None = None
        self._until_look = 0
        self._careful = False
        self._flags = sftp.READ | sftp.WRITE | sftp.CREATE | sftp.EXCLUSIVE
        try:
            link.attempt(self._make)
        except ServerError as error:
            raise refused(error, f"{path} cannot be made") from error

    def _make(self, session: SftpSession) -> None:
        flags = self._flags
        # A link that breaks off here leaves open whether the file was made; the folder is ours alone.
        self._flags = sftp.READ | sftp.WRITE | sftp.CREATE
        handle = open_file(session, self.path, flags)
        self._handle = (self._link.made, handle)
        session.call(Kind.FSETSTAT, sftp.string(handle), sftp.attributes(mode=FILE_MODE)).status()
        found = session.call(Kind.FSTAT, sftp.string(handle)).expect(Kind.ATTRS).attributes()
        if found.mode is not None and stat.S_IMODE(found.mode) & 0o077:
            raise TargetError(f"the server made {self.path} readable by others, whatever was asked for")
        self._flags = sftp.READ | sftp.WRITE

    def handle(self, session: SftpSession) -> bytes:
        """As link.Writer: opened again after the link broke off. Raises TargetError when the server lost bytes."""
        if self._handle is not None and self._handle[0] == self._link.made:
            return self._handle[1]
        handle = open_file(session, self.path, self._flags)
        found = session.call(Kind.FSTAT, sftp.string(handle)).expect(Kind.ATTRS).attributes()
        if found.size is not None and found.size < self._acknowledged:
            self._broken = TargetError(
                f"the server lost what it had taken: {self.path} has {found.size} bytes of {self._acknowledged}"
            )
            raise self._broken
        self._handle = (self._link.made, handle)
        return handle

    def answered(self, write: Write, error: ServerError | None) -> None:
        """As link.Writer."""
        if error is not None:
            if self._broken is None:
                self._failures.append((write, error))
        else:
            self._acknowledged = max(self._acknowledged, write.offset + len(write.data))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self.close()
        except KdumpError:
            if kind is None:
                raise

    def write_at(self, offset: int, data: Buffer) -> None:
        """As write_parts."""
        self.write_parts(offset, [data])

    def write_parts(self, offset: int, parts: Sequence[Buffer]) -> None:
        """All of `parts`, one behind the other, from `offset` on, sent, and with little room answered. Raises
        NoSpaceError or TargetError, also for what was sent before."""
        with self._link.lock:
            self._turn += 1
            self._check()
            size = sum(map(len, parts))
            self._look_at_room(size)
            self.size = max(self.size, offset + size)
            for at, piece in _pieces(offset, parts, self._link.session.write_size):
                self._link.write(Write(self, at, piece, self._turn))
                if self._failures:
                    break
            if self._careful or self._failures:
                self._link.drain()
            self._check()

    def _look_at_room(self, size: int) -> None:
        self._until_look -= size
        if self._until_look < 0 and not self._careful:
            room = self.free_bytes()
            self._careful = room is not None and room < _LITTLE_ROOM + size
            self._until_look = _LOOK_AT_ROOM

    def _settle(self) -> None:
        """Waits for all answers. What was refused by now cannot be made good by its caller any more."""
        self._link.drain()
        self._turn += 1
        self._check()

    def _check(self) -> None:
        """Raises what became of the writes that were answered; for good where one of an earlier call was refused."""
        if self._broken is not None:
            raise self._broken
        if not self._failures:
            return
        self._link.drain()
        failures, self._failures = self._failures, []
        write, error = min(failures, key=lambda failure: failure[0].offset)
        what = f"{self.name} cannot be written at {write.offset}"
        room = self.free_bytes() if error.status == Status.FAILURE else None
        if room is not None and room < _NO_ROOM:
            found: TargetError = NoSpaceError(f"{what}: no space left on the server")
        elif error.status == Status.FAILURE:
            found = TargetError(f"{what}: {error.text}", hint="is the server's disk full, over its quota, or broken?")
        else:
            found = refused(error, what)
        if any(write.turn != self._turn for write, _ in failures):
            self._broken = found
        raise found from error

    def read_at(self, offset: int, size: int) -> bytes:
        """Up to `size` bytes from `offset`."""
        with self._link.lock:
            self._settle()
            try:
                return self._link.attempt(lambda session: read_file(session, self.handle(session), offset, size))
            except ServerError as error:
                raise refused(error, f"{self.name} cannot be read back at {offset}") from error

    def sync(self) -> None:
        """Returns when the server has all and, where it can be asked to, has it on stable storage."""
        with self._link.lock:
            self._settle()
            try:
                self._link.attempt(self._sync)
            except ServerError as error:
                self._broken = refused(error, f"{self.name} did not reach stable storage")
                raise self._broken from error

    def _sync(self, session: SftpSession) -> None:
        if _FSYNC in session.extensions:
            handle = sftp.string(self.handle(session))
            session.call(Kind.EXTENDED, sftp.string(_FSYNC), handle, wait_sec=_FSYNC_SEC).status()

    def truncate(self, size: int) -> None:
        """Cuts the file to `size` bytes, or makes it so long."""
        with self._link.lock:
            self._settle()
            try:
                self._link.attempt(lambda session: self._resize(session, size))
            except ServerError as error:
                raise refused(error, f"{self.name} cannot be made {size} bytes long") from error
            self.size = self._acknowledged = size

    def _resize(self, session: SftpSession, size: int) -> None:
        self._acknowledged = min(self._acknowledged, size)
        session.call(Kind.FSETSTAT, sftp.string(self.handle(session)), sftp.attributes(size=size)).status()

    def reserve(self, size: int) -> None:
        """Makes the file `size` bytes long, so that they read as zeros. SFTP can take no room; whether there is any
        is looked at. Raises NoSpaceError."""
        room = self.free_bytes()
        if room is not None and room < size:
            raise NoSpaceError(f"no room for {size} bytes of {self.name}: {room} are left on the server")
        if size > self.size:
            self.truncate(size)

    def free_bytes(self) -> int | None:
        """Room on the server for this user, where it says so."""
        try:
            return self._link.attempt(lambda session: free_bytes(session, self.path))
        except ServerError:
            return None

    def scratch(self, size: int) -> None:
        """There is nothing on the other side that could be mapped."""

    def close(self) -> None:
        """Closing twice is harmless. Raises what the server has to say at close."""
        with self._link.lock:
            opened, trouble = self._handle, None
            if opened is None:
                return
            try:
                self._settle()
            except TargetError as error:
                trouble = error
            self._handle = None
            try:
                # Also after trouble: a file that is removed gives its room back only when nobody has it open.
                if opened[0] == self._link.made:
                    self._link.attempt(lambda session: self._close(session, *opened))
            except ServerError as error:
                trouble = trouble or refused(error, f"{self.name} cannot be closed")
            except TargetError as error:
                trouble = trouble or error
            if trouble is not None:
                raise trouble

    def _close(self, session: SftpSession, made: int, handle: bytes) -> None:
        if made == self._link.made:
            session.call(Kind.CLOSE, sftp.string(handle)).status()


class RemoteDirectory:
    """One new directory for one crash (targets.target.Store)."""

    def __init__(self, link: Link[Connection], path: str, run: Run) -> None:
        """`path` is there and ours."""
        self.path = path
        self.notes: list[str] = []
        self._link = link
        self._run = run
        if _FSYNC not in link.session.extensions:
            self.notes.append("the server cannot be asked to put files on stable storage (fsync@openssh.com)")
        self._files: dict[str, RemoteFile] = {}

    @classmethod
    def create(cls, link: Link[Connection], directory: str, name: str, run: Run) -> RemoteDirectory:
        """Makes `directory`/`name`, and whatever of `directory` is missing; another crash of the same name gets a
        number behind it. Raises TargetError."""
        path = "" if directory.startswith("/") else "."
        for part in (part for part in directory.split("/") if part):
            path = f"{path}/{part}"
            if not _is_directory(link, path):
                _make_directory(link, path)
        for number in range(1, _MAX_SAME_NAME):
            candidate = f"{path or ''}/{name}" + (f"-{number}" if number > 1 else "")
            if _make_directory(link, candidate):
                return cls(link, candidate, run)
        raise TargetError(f"{path} already holds {_MAX_SAME_NAME} crashes named {name}")

    @property
    def where(self) -> str:
        """The place, for a person."""
        return f"{self._link.name}:{self.path}"

    def create_file(self, name: str) -> RemoteFile:
        """A new file, 0600."""
        self._files[name] = RemoteFile(self._link, f"{self.path}/{name}")
        return self._files[name]

    def stored(self, name: str) -> RemoteDump:
        """As Store.stored."""
        return RemoteDump(self._link, f"{self.path}/{name}")

    def remove(self, name: str) -> None:
        """Takes a file away, which gives its room back; nothing when that fails."""
        try:
            self._link.attempt(lambda session: session.call(Kind.REMOVE, sftp.string(f"{self.path}/{name}")).status())
        except (ServerError, KdumpError):
            return

    def rename(self, old: str, new: str) -> None:
        """Gives a file its final name, and looks whether the server has it there with all its bytes."""
        tries = 0

        def operation(session: SftpSession) -> Attributes:
            nonlocal tries
            tries += 1
            names = sftp.string(f"{self.path}/{old}"), sftp.string(f"{self.path}/{new}")
            try:
                if _RENAME in session.extensions:
                    session.call(Kind.EXTENDED, sftp.string(_RENAME), *names).status()
                else:
                    session.call(Kind.RENAME, *names).status()
            except ServerError as error:
                # It may have been done just before the link broke off.
                if tries == 1 or error.status != Status.NO_SUCH_FILE:
                    raise
            return attributes_of(session, f"{self.path}/{new}")

        try:
            found = self._link.attempt(operation)
        except ServerError as error:
            raise refused(error, f"{self.path}/{old} cannot be renamed to {new}") from error
        file = self._files.pop(old, None)
        if file is not None and found.size is not None and found.size != file.size:
            raise TargetError(f"{self.path}/{new} has {found.size} bytes on the server, and should have {file.size}")

    def discard(self) -> None:
        """Takes the folder away if it is empty; nothing when that fails."""
        try:
            self._link.attempt(lambda session: session.call(Kind.RMDIR, sftp.string(self.path)).status())
        except (ServerError, KdumpError):
            return

    def sync(self) -> None:
        """Nothing: SFTP has no way to ask that names be durable; fsync of a file brings its name along on most."""

    def digest(self, name: str, offset: int, size: int) -> str | None:
        """The sha256 of a part of a file, as the server has it.

        The server computes it where it runs commands. Where it does not it is read back if the link broke off at any
        time, since then nobody knows what the server has lost; otherwise None.
        """
        path = f"{self.path}/{name}"
        command = f"tail -c +{offset + 1} -- {shlex.quote(path)} | head -c {size} | sha256sum"
        output = self._run(command, size)
        found = (output or b"").split()[:1]
        if found and len(found[0]) == 64 and all(char in b"0123456789abcdef" for char in found[0]):
            return found[0].decode()
        if self._link.made < 2:
            return None
        digest = hashlib.sha256()
        file = self.stored(name)
        for at in range(offset, offset + size, READ_BYTES):
            digest.update(file.read_at(at, min(READ_BYTES, offset + size - at)))
        file.close()
        return digest.hexdigest()


def _pieces(offset: int, parts: Sequence[Buffer], most: int) -> list[tuple[int, bytes]]:
    """(offset, bytes) with at most `most` each. They are copies: the writer's buffers are filled anew."""
    found: list[tuple[int, bytes]] = []
    waiting: list[Buffer] = []
    size = 0
    for part in parts:
        view = memoryview(part).cast("B")
        while len(view):
            piece = view[: most - size]
            waiting.append(piece)
            size += len(piece)
            view = view[len(piece) :]
            if size == most:
                found.append((offset, b"".join(waiting)))
                offset, size, waiting = offset + size, 0, []
    if size:
        found.append((offset, b"".join(waiting)))
    return found


def free_bytes(session: SftpSession, path: str) -> int | None:
    """Room for this user on the filesystem of `path`, where the server says so (OpenSSH: PROTOCOL, 4.4)."""
    if _STATVFS not in session.extensions:
        return None
    reply = session.call(Kind.EXTENDED, sftp.string(_STATVFS), sftp.string(path)).expect(Kind.EXTENDED_REPLY)
    _, fragment, _, _, available = (reply.u64() for _ in range(5))
    return fragment * available


def _is_directory(link: Link[Connection], path: str) -> bool:
    """Whether there is a folder. Raises TargetError when something else is in its place."""
    try:
        mode = link.attempt(lambda session: attributes_of(session, path)).mode
    except ServerError as error:
        if error.status == Status.NO_SUCH_FILE:
            return False
        raise refused(error, f"{path} on the server cannot be looked at") from error
    if mode is not None and not stat.S_ISDIR(mode):
        raise TargetError(f"{path} on the server is in the way: it is not a directory")
    return True


def _make_directory(link: Link[Connection], path: str) -> bool:
    """Whether it was made, 0700; not if it is there. Raises TargetError."""

    def operation(session: SftpSession) -> None:
        session.call(Kind.MKDIR, sftp.string(path), sftp.attributes(mode=DIRECTORY_MODE)).status()

    try:
        link.attempt(operation)
    except ServerError as error:
        # This version of the protocol has no word for "exists".
        try:
            link.attempt(lambda session: session.call(Kind.LSTAT, sftp.string(path)).expect(Kind.ATTRS))
        except ServerError:
            raise refused(error, f"{path} cannot be made on the server") from error
        return False
    return True
