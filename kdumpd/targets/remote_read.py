# SPDX-License-Identifier: GPL-2.0-or-later
"""Reads files on an SFTP server, with many requests under way."""

from __future__ import annotations

import collections

from kdumpd.errors import DumpFormatError
from kdumpd.targets import sftp
from kdumpd.targets.files import FILE_MODE
from kdumpd.targets.link import Connection, Link
from kdumpd.targets.sftp import Attributes, Kind, LinkLostError, ServerError, SftpSession, Status

_READ = 32 << 10  # what every server gives at once
READ_BYTES = 32 * _READ  # under way at a time
_BLOCKS = 32  # of _READ, kept of a file that is looked at here and there


class RemoteDump:
    """A file that is only read (dumpfile.stored.Stored), a few blocks of it at hand."""

    complete = True

    def __init__(self, link: Link[Connection], path: str) -> None:
        """Raises DumpFormatError when the server has no such file."""
        self.name = path
        self._link = link
        self._blocks: collections.OrderedDict[int, bytes] = collections.OrderedDict()
        self._handle: tuple[int, bytes] | None = None
        try:
            size = link.attempt(lambda session: attributes_of(session, path)).size
        except ServerError as error:
            raise DumpFormatError(f"{path} cannot be opened: {error.text}") from error
        if size is None:
            raise DumpFormatError(f"{path} has a size that the server does not tell")
        self.size = size

    def read_at(self, offset: int, size: int) -> bytes:
        """Up to `size` bytes from `offset`; fewer at the end. Raises DumpFormatError."""
        size = min(size, self.size - offset)
        if offset < 0 or size <= 0:
            return b""
        if size > _READ:
            return self._fetch(offset, size)
        first, last = offset // _READ, (offset + size - 1) // _READ
        data = b"".join(self._block(number) for number in range(first, last + 1))
        return data[offset - first * _READ :][:size]

    def _block(self, number: int) -> bytes:
        data = self._blocks.pop(number, None)
        if data is None:
            data = self._fetch(number * _READ, min(_READ, self.size - number * _READ))
        self._blocks[number] = data
        if len(self._blocks) > _BLOCKS:
            self._blocks.popitem(last=False)
        return data

    def _fetch(self, offset: int, size: int) -> bytes:
        try:
            return self._link.attempt(lambda session: read_file(session, self._opened(session), offset, size))
        except ServerError as error:
            raise DumpFormatError(f"{self.name} cannot be read at {offset}: {error.text}") from error

    def _opened(self, session: SftpSession) -> bytes:
        if self._handle is None or self._handle[0] != self._link.made:
            self._handle = (self._link.made, open_file(session, self.name, sftp.READ))
        return self._handle[1]

    def close(self) -> None:
        """Closing twice is harmless; the server closes what is open when the link ends."""
        opened, self._handle = self._handle, None
        if opened is not None and opened[0] == self._link.made:
            self._link.attempt(lambda session: session.call(Kind.CLOSE, sftp.string(opened[1])))


def open_file(session: SftpSession, path: str, flags: int) -> bytes:
    """The handle of a file, which is 0600 if `flags` make it. Raises ServerError."""
    attributes = sftp.attributes(mode=FILE_MODE)
    return session.call(Kind.OPEN, sftp.string(path), sftp.u32(flags), attributes).expect(Kind.HANDLE).string()


def attributes_of(session: SftpSession, path: str) -> Attributes:
    """What the server knows of the file behind `path`. Raises ServerError."""
    return session.call(Kind.STAT, sftp.string(path)).expect(Kind.ATTRS).attributes()


def read_file(session: SftpSession, handle: bytes, offset: int, size: int) -> bytes:
    """Up to `size` bytes; short answers are asked for the rest. Raises ServerError."""
    out = bytearray()
    while len(out) < size:
        wanted = []
        for at in range(offset + len(out), min(offset + size, offset + len(out) + READ_BYTES), _READ):
            count = min(_READ, offset + size - at)
            fields = sftp.string(handle), sftp.u64(at), sftp.u32(count)
            wanted.append((session.request(Kind.READ, *fields), count))
        if not _take_reads(session, wanted, out):
            break
    return bytes(out)


def _take_reads(session: SftpSession, wanted: list[tuple[int, int]], out: bytearray) -> bool:
    """Adds to `out` what came without a gap; False at the end of the file."""
    answers: dict[int, bytes | None] = {}
    trouble: ServerError | None = None
    while len(answers) < len(wanted):
        reply = session.reply()
        answers[reply.number] = None
        try:
            answers[reply.number] = reply.expect(Kind.DATA).string()
        except ServerError as error:
            if error.status != Status.EOF:
                trouble = trouble or error
    if trouble is not None:
        raise trouble
    for number, count in wanted:
        if number not in answers:
            raise LinkLostError("the server answered what it was not asked")
        data = answers[number]
        if data is None:
            return False
        out += data
        if len(data) < count:
            break
    return True
