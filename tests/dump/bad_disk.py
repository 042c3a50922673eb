# SPDX-License-Identifier: GPL-2.0-or-later
"""A filesystem with one file whose reads fail where they are told to: a disk with bad sectors, without a disk.

`bad_disk.py FOLDER FILE END [OFFSET...]` mounts it on FOLDER and shows FILE as FOLDER/core. Reading a page at one of
the OFFSETs gives EIO; from END on there is nothing to read any more, although the size was another when the file was
opened. The kernel's side of it is FUSE (linux: include/uapi/linux/fuse.h, fs/fuse/dev.c). Ends when it is unmounted.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import stat
import struct
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

PAGE = 4096
_IN = struct.Struct("<IIQQIIIHH")  # length, opcode, unique, node, uid, gid, pid, and two that are not used
_OUT = struct.Struct("<IiQ")
_ATTR = struct.Struct("<6Q10I")
_LOOKUP, _FORGET, _GETATTR, _OPEN, _READ, _STATFS, _INIT, _BATCH_FORGET = 1, 2, 3, 14, 15, 17, 26, 42
_DONE = frozenset((18, 25))  # release, flush
_ROOT, _FILE = 1, 2
_ROOM = 1 << 18


class BadDisk:
    """Answers the kernel's requests."""

    def __init__(self, folder: str, file: str, end: int, bad: Sequence[int]) -> None:
        self._file = os.open(file, os.O_RDONLY)
        self._size = os.fstat(self._file).st_size
        self._end, self._bad = end, sorted(bad)
        self._fuse = os.open("/dev/fuse", os.O_RDWR)
        options = f"fd={self._fuse},rootmode=40000,user_id=0,group_id=0".encode()
        if ctypes.CDLL(None, use_errno=True).mount(b"bad", folder.encode(), b"fuse", 0, options):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), folder)

    def serve(self) -> None:
        """Until it is unmounted."""
        while True:
            try:
                request = os.read(self._fuse, _ROOM)
            except OSError as error:
                if error.errno in (errno.EINTR, errno.ENOENT):
                    continue
                return
            _, opcode, unique, node, *_ = _IN.unpack_from(request)
            if opcode in (_FORGET, _BATCH_FORGET):
                continue
            try:
                body, code = self._answer(opcode, node, request[_IN.size :]), 0
            except OSError as error:
                body, code = b"", -(error.errno or errno.EIO)
            with contextlib.suppress(FileNotFoundError):  # the request was interrupted
                os.write(self._fuse, _OUT.pack(_OUT.size + len(body), code, unique) + body)

    def _answer(self, opcode: int, node: int, body: bytes) -> bytes:
        if opcode == _INIT:
            return struct.pack("<IIIIHHIIHHI28x", 7, 31, 1 << 17, 0, 0, 0, 1 << 17, 1, 0, 0, 0)
        if opcode == _LOOKUP:
            if node != _ROOT or body.rstrip(b"\0") != b"core":
                raise FileNotFoundError(errno.ENOENT, "only core is here")
            return struct.pack("<QQQQII", _FILE, 0, 3600, 3600, 0, 0) + self._attributes(_FILE)
        if opcode == _GETATTR:
            return struct.pack("<QII", 3600, 0, 0) + self._attributes(node)
        if opcode == _OPEN:
            return struct.pack("<QII", 0, 0, 0)
        if opcode == _READ:
            return self._read(*struct.unpack_from("<QI", body, 8))
        if opcode == _STATFS:
            return bytes(80)
        if opcode in _DONE:
            return b""
        raise OSError(errno.ENOSYS, "not needed")

    def _attributes(self, node: int) -> bytes:
        mode, size = (stat.S_IFDIR | 0o755, 0) if node == _ROOT else (stat.S_IFREG | 0o600, self._size)
        return _ATTR.pack(node, size, -(-size // 512), 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, PAGE, 0)

    def _read(self, offset: int, size: int) -> bytes:
        if any(offset < bad + PAGE and bad < offset + size for bad in self._bad):
            raise OSError(errno.EIO, "bad sector")
        return os.pread(self._file, max(0, min(size, self._end - offset)), offset)


@contextlib.contextmanager
def bad_disk(folder: Path, file: Path, *, bad: Sequence[int] = (), end: int | None = None) -> Iterator[Path]:
    """The path of `file` on such a disk."""
    folder.mkdir()
    end = file.stat().st_size if end is None else end
    argv = ["/usr/bin/python3", __file__, folder, file, end, *bad]
    server = subprocess.Popen([str(word) for word in argv], stdout=subprocess.PIPE)
    try:
        assert server.stdout is not None
        assert server.stdout.readline() == b"mounted\n"
        yield folder / "core"
    finally:
        subprocess.run(["umount", str(folder)], check=True)
        assert server.wait(timeout=30) == 0


if __name__ == "__main__":
    disk = BadDisk(sys.argv[1], sys.argv[2], int(sys.argv[3]), [int(word) for word in sys.argv[4:]])
    print("mounted", flush=True)
    disk.serve()
