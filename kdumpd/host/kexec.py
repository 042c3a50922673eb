# SPDX-License-Identifier: GPL-2.0-or-later
"""Loading and unloading the capture kernel with kexec_file_load(2), and asking whether one is loaded.

Knows the system calls, their flags (include/uapi/linux/kexec.h) and what their errors mean. Refuses to know which
image is right: it loads the pair it is given, after the checks of `kexec_checks.py`.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from kdumpd.config.keyring import has_logon_key, use_root_keys
from kdumpd.errors import LoadError, UnsupportedError, os_reason
from kdumpd.host import crypt_keys
from kdumpd.host.files import read_int
from kdumpd.host.kernel_image import unpacked
from kdumpd.host.kexec_checks import check_pair
from kdumpd.host.kexec_errors import load_error
from kdumpd.host.kexec_pair import OpenPair
from kdumpd.host.security import read_security

FILE_UNLOAD = 1
FILE_ON_CRASH = 2
_ON_CRASH = 1  # the flag of the older call

# __NR_kexec_file_load, __NR_kexec_load; the generic table (asm-generic/unistd.h) serves all newer architectures.
SYSCALLS = {
    "x86_64": (320, 246),
    "aarch64": (294, 104),
    "riscv64": (294, 104),
    "loongarch64": (294, 104),
    "ppc64le": (382, 268),
    "s390x": (381, 277),
}

LOADED_PATHS = ("/sys/kernel/kexec/crash_loaded", "/sys/kernel/kexec_crash_loaded")
_TRIES = 20
_BUSY_SECONDS = 0.25  # another load, one of a service that was killed perhaps, is over in less than 20 of these

# (kernel_fd, initrd_fd, cmdline, flags) -> errno, 0 when it went well
Syscall = Callable[[int, int, str, int], int]


class KexecLoader(Protocol):
    """How the service reaches the kernel; tests put a machine of files in its place."""

    def load(self, opened: OpenPair) -> None:
        """Loads the pair. Raises LoadError or UnsupportedError."""

    def unload(self) -> None:
        """Unloads whatever is loaded. Raises LoadError or UnsupportedError."""

    def soon(self) -> contextlib.AbstractContextManager[None]:
        """Inside the block a load may be asked for: whoever carries it out may start already. Raises nothing."""


def read_loaded(root: Path = Path("/")) -> bool | None:
    """True when the kernel holds a capture kernel; None when it knows no such thing (no CONFIG_KEXEC or CRASH_DUMP)."""
    value = read_int(root, *LOADED_PATHS)
    return None if value is None else value == 1


def has_syscall(arch: str) -> bool:
    """True when this module knows the numbers of the system calls on `arch`."""
    return arch in SYSCALLS


def kexec_file_load(arch: str) -> Syscall:
    """The system call itself; unloading falls back to kexec_load(2) on kernels that have only that.

    Raises UnsupportedError for an architecture whose numbers are not known.
    """
    if not has_syscall(arch):
        raise UnsupportedError(f"kdumpd does not know how to load a capture kernel on {arch}")
    number, older = (ctypes.c_long(number) for number in SYSCALLS[arch])
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
        if result != 0 and ctypes.get_errno() == errno.ENOSYS and flags & FILE_UNLOAD:
            zero = ctypes.c_ulong(0)  # no entry, no segments
            result = libc.syscall(older, zero, zero, ctypes.c_void_p(None), ctypes.c_ulong(_ON_CRASH))
        return ctypes.get_errno() if result != 0 else 0

    return call


class FileLoader:
    """The real loader. `syscall` and `keyring` are only others in tests."""

    def __init__(
        self,
        arch: str,
        *,
        root: Path = Path("/"),
        syscall: Syscall | None = None,
        keyring: crypt_keys.HasKey | None = None,
    ) -> None:
        self._arch = arch
        self._root = root
        self._syscall = syscall
        self._keyring = keyring or root_keyring

    def load(self, opened: OpenPair) -> None:
        """Checks kernel and image, loads them for a crash, and looks whether the kernel says so too.

        The kernel drops the old capture kernel at the beginning of the call, so all checks come before it.
        """
        syscall = self._syscall or kexec_file_load(self._arch)
        header = check_pair(opened, self._arch, self._root)
        with contextlib.ExitStack() as stack:
            kernel_fd = opened.kernel_fd
            if header is not None and header.packed is not None:
                kernel_fd = unpacked(kernel_fd, header, str(opened.pair.kernel))
                stack.callback(os.close, kernel_fd)
            crypt_keys.name_keys(opened.pair.keys, self._keyring, self._root)
            self._call(syscall, kernel_fd, opened.initrd_fd, opened.pair.cmdline, FILE_ON_CRASH)
        if not read_loaded(self._root):
            raise LoadError(
                "The kernel took the capture kernel without an error, yet says that none is loaded",
                hint="look at the kernel's log: journalctl -k",
            )
        if opened.pair.keys:
            try:
                crypt_keys.require_handed_over(self._root)
            except LoadError:
                # It would capture nothing: nobody may take it for one that does.
                self.unload()
                raise

    def soon(self) -> contextlib.AbstractContextManager[None]:
        """Nobody has to start: this process makes the call."""
        return contextlib.nullcontext()

    def unload(self) -> None:
        """Takes the capture kernel out of the kernel."""
        syscall = self._syscall or kexec_file_load(self._arch)
        self._call(syscall, -1, -1, "", FILE_UNLOAD | FILE_ON_CRASH)
        if read_loaded(self._root):
            raise LoadError("The kernel unloaded without an error, yet says that a capture kernel is loaded")

    def _call(self, syscall: Syscall, kernel_fd: int, initrd_fd: int, cmdline: str, flags: int) -> None:
        code = until_free(lambda: syscall(kernel_fd, initrd_fd, cmdline, flags))
        if code == errno.ENOKEY and crypt_keys.is_in_use(self._root):
            raise LoadError(
                "The kernel refused to load the capture kernel: no key fits its signature, or another key named in"
                f" {crypt_keys.CRASH_KEYS} is not in root's keyring",
                hint=f"remove the folders there that nobody needs: rmdir {crypt_keys.CRASH_KEYS}/NAME",
                errno=code,
            )
        if code != 0:
            raise load_error(code, read_security(self._root), unloading=bool(flags & FILE_UNLOAD))


def root_keyring(wanted: str) -> bool:
    """Whether this process, from now on, finds the logon key `wanted` of root, as the kernel does at a load. Raises
    LoadError when nobody can tell."""
    try:
        use_root_keys()
        return has_logon_key(wanted)
    except OSError as error:
        raise LoadError(
            f"Root's keyring cannot be searched for the key of the encrypted target: {os_reason(error)}",
            errno=error.errno,
        ) from error


def until_free(call: Callable[[], int]) -> int:
    """Calls until nobody else is loading and no signal comes between; the last errno, 0 when it went well."""
    code = 0
    for _ in range(_TRIES):
        code = call()
        if code == errno.EBUSY:
            time.sleep(_BUSY_SECONDS)
        elif code != errno.EINTR:
            break
    return code
