# SPDX-License-Identifier: GPL-2.0-or-later
"""What each error of kexec_file_load(2) and kexec_load(2) means, and what mends it.

Sources: kexec_file_load(2), kernel/kexec_file.c, kernel/kexec.c (kexec_load_permitted), security/integrity.
"""

from __future__ import annotations

import errno
import os

from kdumpd.errors import KdumpError, LoadError, UnsupportedError
from kdumpd.host.security import Security

_BIGGER = "boot with a larger crashkernel=, for example crashkernel=256M"
_SIGNED = "install the distribution's own signed kernel, or enrol the key that signed this one"

_MEANING: dict[int, tuple[str, str | None]] = {
    errno.EPERM: ("kdumpd runs without the right to load a capture kernel (CAP_SYS_BOOT)", "run it as root"),
    errno.ENOKEY: ("the kernel has no key that fits the signature of the capture kernel", _SIGNED),
    errno.EKEYREJECTED: ("the signature of the capture kernel was rejected", _SIGNED),
    errno.ENODATA: ("the capture kernel carries no signature, and this kernel demands one", _SIGNED),
    errno.EBADMSG: ("the signature of the capture kernel is damaged", "reinstall the package of the running kernel"),
    errno.EADDRNOTAVAIL: ("kernel and image do not fit into the memory reserved by crashkernel=", _BIGGER),
    errno.ENOMEM: ("the kernel had no memory left for the load", "free some memory, then: kdumpctl load"),
    errno.EBUSY: ("another program is loading a kernel at this moment", "try again: kdumpctl load"),
    errno.ENOEXEC: ("the kernel file has a format that this kernel does not load", "reinstall the running kernel"),
    errno.EINVAL: ("the kernel called the request invalid", "the kernel's log may say more: journalctl -k"),
    errno.EBADF: ("the kernel could not use the opened files", None),
    errno.EFBIG: ("the kernel file or the image is larger than the kernel accepts", None),
    errno.EINTR: ("the load was interrupted by signals over and over", "try again: kdumpctl load"),
    errno.EACCES: ("a security policy (IMA, SELinux or LoadPin) forbids it", "look at: journalctl -k --grep=kexec"),
    errno.EIO: ("the files could not be read from the disk", "look at: journalctl -k"),
    errno.ETXTBSY: ("the kernel file or the image is open for writing elsewhere", "try again: kdumpctl load"),
}

# What another attempt with the same files meets again.
LASTING = frozenset({
    errno.EADDRNOTAVAIL, errno.ENOEXEC, errno.ENOKEY, errno.EKEYREJECTED, errno.ENODATA, errno.EBADMSG, errno.EINVAL,
    errno.EFBIG,
})  # fmt: skip


def load_error(
    code: int, security: Security, *, unloading: bool = False, syscall: str = "kexec_file_load"
) -> KdumpError:
    """The error to raise for errno `code` of `syscall`, in the light of what the kernel forbids at this moment."""
    if code == errno.ENOSYS:
        option = "CONFIG_KEXEC_FILE" if syscall == "kexec_file_load" else "CONFIG_KEXEC"
        return UnsupportedError(
            f"This kernel has no {syscall}(2) ({option} is not set)",
            hint=f"run a kernel that is built with {option}=y",
        )
    cause, hint = _MEANING.get(code, (os.strerror(code), None))
    if code == errno.EPERM:
        cause, hint = _permission(security, cause, hint)
    verb = "unload" if unloading else "load"
    return LoadError(f"The kernel refused to {verb} the capture kernel: {cause}", hint=hint, errno=code)


def _permission(security: Security, cause: str, hint: str | None) -> tuple[str, str | None]:
    """EPERM has four causes; the kernel tells three of them elsewhere."""
    if security.load_disabled:
        return "loading is switched off until the next boot (kernel.kexec_load_disabled=1)", (
            "remove kernel.kexec_load_disabled from /etc/sysctl.d and boot again"
        )
    if security.load_limit == 0:
        return "the number of loads allowed by kernel.kexec_load_limit_panic is used up", "boot again"
    if security.lockdown not in (None, "none"):
        return f"the kernel is locked down ({security.lockdown}) and takes signed kernels only", _SIGNED
    return cause, hint
