# SPDX-License-Identifier: GPL-2.0-or-later
"""Opening a folder below another one, and nowhere else, whatever somebody does to the folders between at the same time.

openat2(2) has the kernel see to it in one step (Linux 5.6). Older kernels, and filters of system calls that do not know
it, get a walk, one openat(2) a part: relative to the folder that is held open, and never through a link.
"""

from __future__ import annotations

import errno
import os
import struct

# The same number on all architectures (include/uapi/asm-generic/unistd.h), as all calls since v5.1 have.
_OPENAT2 = 437
_HOW = struct.Struct("=QQQ")  # struct open_how: flags, mode, resolve (include/uapi/linux/openat2.h)
_RESOLVE_NO_MAGICLINKS = 0x02
_RESOLVE_NO_SYMLINKS = 0x04
_RESOLVE_BENEATH = 0x08
_RESOLVE = _RESOLVE_BENEATH | _RESOLVE_NO_SYMLINKS | _RESOLVE_NO_MAGICLINKS
_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
# EPERM is a filter's way to say ENOSYS (old libseccomp); E2BIG cannot be, the structure is the oldest one.
_UNKNOWN = frozenset({errno.ENOSYS, errno.EPERM, errno.EINVAL})
_TRIES = 100


def open_folder(folder: int, path: str) -> int:
    """A descriptor of the folder `path` below the open `folder`; "" is `folder` itself.

    Raises OSError: ELOOP for a link on the way, EXDEV for a way out, ENOTDIR for what is no folder.
    """
    wanted = "/".join(part for part in path.split("/") if part) or "."
    try:
        return _openat2(folder, wanted)
    except OSError as error:
        if error.errno not in _UNKNOWN:
            raise
    return walk(folder, wanted)


def walk(folder: int, path: str) -> int:
    """As open_folder, part by part."""
    held = os.dup(folder)
    try:
        for part in path.split("/"):
            if part == "..":
                raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
            below = os.open(part, _FLAGS | os.O_NOFOLLOW, dir_fd=held)
            os.close(held)
            held = below
    except BaseException:
        os.close(held)
        raise
    return held


def _openat2(folder: int, path: str) -> int:
    import ctypes  # numpy has it in memory anyway; who takes no dump need not

    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    how = _HOW.pack(_FLAGS, 0, _RESOLVE)
    for _ in range(_TRIES):
        found = libc.syscall(
            ctypes.c_long(_OPENAT2),
            ctypes.c_int(folder),
            os.fsencode(path),
            ctypes.c_char_p(how),
            ctypes.c_size_t(len(how)),
        )
        if found >= 0:
            return int(found)
        code = ctypes.get_errno()
        # EAGAIN: somebody renames folders at this moment, and the kernel does not vouch for what it saw (openat2(2)).
        if code not in (errno.EAGAIN, errno.EINTR):
            break
    raise OSError(code, os.strerror(code))
