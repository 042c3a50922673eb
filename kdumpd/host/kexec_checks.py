# SPDX-License-Identifier: GPL-2.0-or-later
"""What kernel and image have to be before the kernel sees them: it drops the old capture kernel first and looks later.

All checks read through descriptors, so that what was checked is what gets loaded.
"""

from __future__ import annotations

import hashlib
import os
import stat
from errno import EADDRNOTAVAIL, EPERM
from pathlib import Path

from kdumpd.errors import LoadError, os_reason
from kdumpd.host.kernel_image import HEADER_BYTES, KernelHeader, parse_header
from kdumpd.host.kexec_errors import load_error
from kdumpd.host.kexec_pair import OpenPair
from kdumpd.host.reservation import read_reservation
from kdumpd.host.security import read_security

_REBUILD = "build it again: kdumpctl rebuild"
_WRITABLE = stat.S_IWGRP | stat.S_IWOTH
# The kernel appends "elfcorehdr=0x... " itself (MAX_ELFCOREHDR_STR_LEN in arch/x86/kernel/kexec-bzimage64.c).
_ELFCOREHDR_BYTES = 31


def check_pair(opened: OpenPair, arch: str, root: Path = Path("/")) -> KernelHeader | None:
    """Raises LoadError when the kernel would refuse the pair, or should not get it; else the kernel's header.

    The header is None for architectures whose kernels are not known here.
    """
    pair = opened.pair
    for fd, what in ((opened.kernel_fd, f"kernel {pair.kernel}"), (opened.initrd_fd, f"image {pair.initrd}")):
        _check_owner(fd, what)
    security = read_security(root)
    if security.load_disabled or security.load_limit == 0:
        raise load_error(EPERM, security)
    header = _check_kernel(opened, arch)
    _check_sum(opened.initrd_fd, pair.initrd_sha256, f"capture image {pair.initrd}", _REBUILD)
    if pair.kernel_sha256:
        _check_sum(opened.kernel_fd, pair.kernel_sha256, f"kernel {pair.kernel}", "kdumpctl load")
    _check_room(opened, header, root)
    return header


def _check_owner(fd: int, what: str) -> None:
    """What others than root may write to is not started with all the rights of a kernel."""
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        raise LoadError(f"The {what} is not a regular file")
    if status.st_uid not in (0, os.geteuid()):
        raise LoadError(f"The {what} belongs to user {status.st_uid}, not to root", hint="chown root: it")
    if status.st_mode & _WRITABLE:
        raise LoadError(f"The {what} may be written by others than root", hint="chmod go-w it")


def _check_kernel(opened: OpenPair, arch: str) -> KernelHeader | None:
    pair = opened.pair
    header = parse_header(os.pread(opened.kernel_fd, HEADER_BYTES, 0), arch, str(pair.kernel))
    if header is None:
        return None
    if os.fstat(opened.kernel_fd).st_size < header.file_bytes:
        raise LoadError(
            f"The kernel {pair.kernel} is cut short: it has {os.fstat(opened.kernel_fd).st_size} bytes,"
            f" its header speaks of {header.file_bytes}",
            hint="reinstall the package of the running kernel",
        )
    if header.cmdline_limit and len(pair.cmdline.encode()) + _ELFCOREHDR_BYTES > header.cmdline_limit:
        raise LoadError(
            f"The command line of the capture kernel is {len(pair.cmdline)} characters long,"
            f" {pair.kernel} takes {header.cmdline_limit}",
            hint="shorten it with commandline_remove in /etc/kdump.conf",
        )
    return header


def _check_sum(fd: int, wanted: str, what: str, hint: str) -> None:
    digest = hashlib.sha256()
    offset = 0
    try:
        while chunk := os.pread(fd, 1 << 20, offset):
            digest.update(chunk)
            offset += len(chunk)
    except OSError as error:
        raise LoadError(f"The {what} cannot be read: {os_reason(error)}", hint=hint, errno=error.errno) from error
    if digest.hexdigest() != wanted:
        raise LoadError(f"The {what} is damaged: it is not the file that was built and checked", hint=hint)


def _check_room(opened: OpenPair, header: KernelHeader | None, root: Path) -> None:
    """What cannot fit however it is laid out is refused here; the rest is left to the kernel."""
    reserved = read_reservation(root).size_bytes
    kernel = 0 if header is None else header.init_size_bytes
    image = os.fstat(opened.initrd_fd).st_size
    if reserved and kernel + image > reserved:
        mib = 1 << 20
        raise LoadError(
            f"Kernel and image do not fit into the memory reserved by crashkernel=: {kernel // mib} and"
            f" {image // mib} MiB into {reserved // mib} MiB",
            hint="boot with a larger crashkernel=, for example crashkernel=256M",
            errno=EADDRNOTAVAIL,
        )
