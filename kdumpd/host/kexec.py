# SPDX-License-Identifier: GPL-2.0-or-later
"""Loading and unloading the capture kernel with kexec_file_load(2), and asking whether one is loaded.

Knows the system call, its flags (include/uapi/linux/kexec.h) and what its errors mean. Refuses to know which image
is right: it loads the pair it is given, after it has looked at both through the very descriptors the kernel gets.
"""

from __future__ import annotations

import ctypes
import dataclasses
import errno
import hashlib
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from kdumpd.errors import LoadError, UnsupportedError, os_reason
from kdumpd.host.bzimage import HEADER_BYTES, parse_header
from kdumpd.host.files import read_int
from kdumpd.host.kexec_errors import load_error
from kdumpd.host.security import read_security

FILE_UNLOAD = 1
FILE_ON_CRASH = 2

# __NR_kexec_file_load; the generic table (asm-generic/unistd.h) serves all newer architectures.
_SYSCALL = {
    "x86_64": 320,
    "aarch64": 294,
    "riscv64": 294,
    "loongarch64": 294,
    "ppc64le": 382,
    "s390x": 381,
}

LOADED_PATHS = ("/sys/kernel/kexec/crash_loaded", "/sys/kernel/kexec_crash_loaded")
_INTERRUPTED_TRIES = 5

# (kernel_fd, initrd_fd, cmdline, flags) -> errno, 0 when it went well
Syscall = Callable[[int, int, str, int], int]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """What gets loaded. `initrd_sha256` is hexadecimal and from the record written when the image was checked."""

    kernel: Path
    initrd: Path
    initrd_sha256: str
    cmdline: str


class KexecLoader(Protocol):
    """How the service reaches the kernel; tests put a machine of files in its place."""

    def load(self, pair: Pair) -> None:
        """Loads the pair. Raises LoadError or UnsupportedError."""

    def unload(self) -> None:
        """Unloads whatever is loaded. Raises LoadError or UnsupportedError."""


def read_loaded(root: Path = Path("/")) -> bool | None:
    """True when the kernel holds a capture kernel; None when it knows no such thing (no CONFIG_KEXEC or CRASH_DUMP)."""
    value = read_int(root, *LOADED_PATHS)
    return None if value is None else value == 1


def has_syscall(arch: str) -> bool:
    """True when this module knows the number of kexec_file_load on `arch`."""
    return arch in _SYSCALL


def kexec_file_load(arch: str) -> Syscall:
    """The system call itself. Raises UnsupportedError for an architecture whose number is not known."""
    if not has_syscall(arch):
        raise UnsupportedError(f"kdumpd does not know how to load a capture kernel on {arch}")
    number = ctypes.c_long(_SYSCALL[arch])
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long

    def call(kernel_fd: int, initrd_fd: int, cmdline: str, flags: int) -> int:
        line = cmdline.encode() + b"\0"
        length = len(line) if cmdline else 0
        result = libc.syscall(
            number,
            ctypes.c_int(kernel_fd),
            ctypes.c_int(initrd_fd),
            ctypes.c_ulong(length),  # with the final NUL: the kernel insists on finding it there
            ctypes.c_char_p(line if cmdline else None),
            ctypes.c_ulong(flags),
        )
        return ctypes.get_errno() if result != 0 else 0

    return call


class FileLoader:
    """The real loader. `syscall` is only another one in tests."""

    def __init__(self, arch: str, *, root: Path = Path("/"), syscall: Syscall | None = None) -> None:
        self._arch = arch
        self._root = root
        self._syscall = syscall

    def load(self, pair: Pair) -> None:
        """Checks kernel and image, loads them for a crash, and looks whether the kernel says so too.

        The kernel drops the old capture kernel at the beginning of the call, so all checks come before it.
        """
        syscall = self._syscall or kexec_file_load(self._arch)
        with _Descriptor(pair.kernel, "kernel") as kernel_fd, _Descriptor(pair.initrd, "image") as initrd_fd:
            check_kernel(kernel_fd, self._arch, pair)
            check_initrd(initrd_fd, pair)
            self._call(syscall, kernel_fd, initrd_fd, pair.cmdline, FILE_ON_CRASH)
        if not read_loaded(self._root):
            raise LoadError(
                "The kernel took the capture kernel without an error, yet says that none is loaded",
                hint="look at the kernel's log: journalctl -k",
            )

    def unload(self) -> None:
        """Takes the capture kernel out of the kernel."""
        syscall = self._syscall or kexec_file_load(self._arch)
        self._call(syscall, -1, -1, "", FILE_UNLOAD | FILE_ON_CRASH)
        if read_loaded(self._root):
            raise LoadError("The kernel unloaded without an error, yet says that a capture kernel is loaded")

    def _call(self, syscall: Syscall, kernel_fd: int, initrd_fd: int, cmdline: str, flags: int) -> None:
        for _ in range(_INTERRUPTED_TRIES):
            code = syscall(kernel_fd, initrd_fd, cmdline, flags)
            if code == 0:
                return
            if code != errno.EINTR:
                break
        raise load_error(code, read_security(self._root), unloading=bool(flags & FILE_UNLOAD))


class _Descriptor:
    """A regular file opened for the kernel, closed at the end of the block."""

    def __init__(self, path: Path, what: str) -> None:
        self._path = path
        self._what = what
        self._fd = -1

    def __enter__(self) -> int:
        try:
            # O_NONBLOCK: a FIFO in the place of the file must not hang the service.
            self._fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise LoadError(
                f"The {self._what} {self._path} cannot be opened: {os_reason(error)}", errno=error.errno
            ) from error
        if not stat.S_ISREG(os.fstat(self._fd).st_mode):
            os.close(self._fd)
            raise LoadError(f"The {self._what} {self._path} is not a regular file")
        return self._fd

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)


def check_kernel(fd: int, arch: str, pair: Pair) -> None:
    """Raises LoadError when the file is no kernel of this machine or the command line is too long for it."""
    header = parse_header(os.pread(fd, HEADER_BYTES, 0), arch, str(pair.kernel))
    # The kernel appends "elfcorehdr=0x... " itself (MAX_ELFCOREHDR_STR_LEN in arch/x86/kernel/kexec-bzimage64.c).
    if header is not None and header.cmdline_limit and len(pair.cmdline.encode()) + 31 > header.cmdline_limit:
        raise LoadError(
            f"The command line of the capture kernel is {len(pair.cmdline)} characters long,"
            f" {pair.kernel} takes {header.cmdline_limit}"
        )


def check_initrd(fd: int, pair: Pair) -> None:
    """Raises LoadError when the image is not, byte for byte, the one that was checked when it was built."""
    digest = hashlib.sha256()
    offset = 0
    try:
        while chunk := os.pread(fd, 1 << 20, offset):
            digest.update(chunk)
            offset += len(chunk)
    except OSError as error:
        raise LoadError(
            f"The capture image {pair.initrd} cannot be read: {os_reason(error)}",
            hint="build it again: kdumpctl rebuild",
            errno=error.errno,
        ) from error
    if digest.hexdigest() != pair.initrd_sha256:
        raise LoadError(
            f"The capture image {pair.initrd} is damaged: it is not the file that was built and checked",
            hint="build it again: kdumpctl rebuild",
        )
