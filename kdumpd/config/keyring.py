# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel's keyrings (keyrings(7)), as far as keys of encrypted volumes are concerned. No key is ever read.

Both kernels use it: the first one to see that a key is there before it counts on it, the capture kernel to let the
process that makes the mapping find it.
"""

from __future__ import annotations

import errno
import os

# __NR_keyctl; the generic table (asm-generic/unistd.h) serves all newer architectures.
_KEYCTL = {"x86_64": 250, "aarch64": 219, "riscv64": 219, "loongarch64": 219, "ppc64le": 271, "s390x": 280}
# include/uapi/linux/keyctl.h
_LINK, _SEARCH = 8, 10
_ABSENT = frozenset({errno.ENOKEY, errno.EKEYEXPIRED, errno.EKEYREVOKED, errno.EKEYREJECTED})
_PROCESS_KEYRING, _USER_KEYRING = -2, -4


def description(uuid: str) -> str:
    """What the volume key of the LUKS volume `uuid` is called in both kernels: as in the kernel's own description of
    crash_dm_crypt_keys (Documentation/admin-guide/kdump/kdump.rst)."""
    return f"cryptsetup:{uuid}"


def use_root_keys() -> None:
    """Lets the kernel find keys of root's own keyring (@u) when this process, of root, asks for them: what systemd
    starts has a session keyring of its own, without a way there (KeyringMode=). Raises OSError."""
    _keyctl(_LINK, _USER_KEYRING, _PROCESS_KEYRING)


def has_logon_key(wanted: str) -> bool:
    """Whether the keyring of root, who this process has to be, holds a usable logon key described `wanted`.

    Nobody outside the kernel can read a key of that type. Raises OSError when the kernel has no keyrings, or does not
    say.
    """
    try:
        _keyctl(_SEARCH, _USER_KEYRING, b"logon", wanted.encode(), 0)
    except OSError as error:
        if error.errno not in _ABSENT:
            raise
        return False
    return True


def _keyctl(operation: int, *arguments: int | bytes) -> int:
    import ctypes  # numpy has it in memory anyway; who has no encrypted target need not

    number = _KEYCTL.get(os.uname().machine)
    if number is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    words = [ctypes.c_char_p(word) if isinstance(word, bytes) else ctypes.c_long(word) for word in arguments]
    found = int(libc.syscall(ctypes.c_long(number), ctypes.c_long(operation), *words))
    if found < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return found
