# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel and image that get loaded together, and the descriptors through which they are checked and read.

Here, and in all that the loader imports, facts are named tuples: `dataclasses` alone, which brings `inspect`, would be
a third of what a machine waits for Python before it is armed.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from kdumpd.config.kexec_syscall import KexecSyscall
from kdumpd.errors import LoadError, os_reason


class Pair(NamedTuple):
    """What gets loaded. The sums are hexadecimal: `initrd_sha256` is from the record written when the image was
    checked, `kernel_sha256` is empty while the kernel was never loaded by us. `keys` are descriptions of the keys that
    the capture kernel gets (crypt_keys.py).
    """

    kernel: Path
    initrd: Path
    initrd_sha256: str
    cmdline: str
    kernel_sha256: str = ""
    syscall: KexecSyscall = KexecSyscall.AUTO
    keys: tuple[str, ...] = ()


class OpenPair(NamedTuple):
    """A pair and the descriptors that the checks look at and the kernel reads from: the files behind their names may
    be replaced meanwhile.
    """

    pair: Pair
    kernel_fd: int
    initrd_fd: int


@contextlib.contextmanager
def open_pair(pair: Pair) -> Iterator[OpenPair]:
    """Opens kernel and image until the end of the block. Raises LoadError."""
    with contextlib.ExitStack() as stack:
        fds = []
        for path, what in ((pair.kernel, "kernel"), (pair.initrd, "image")):
            fds.append(_open(path, what))
            stack.callback(os.close, fds[-1])
        yield OpenPair(pair, *fds)


def _open(path: Path, what: str) -> int:
    try:
        # O_NONBLOCK: a FIFO in the place of the file must not hang the service.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise LoadError(f"The {what} {path} cannot be opened: {os_reason(error)}", errno=error.errno) from error
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise LoadError(f"The {what} {path} is not a regular file")
    return fd
