# SPDX-License-Identifier: GPL-2.0-or-later
"""The header of a kernel file: is it a kernel for this machine, and how much memory does it want?

Knows the x86 boot protocol (Documentation/arch/x86/boot.rst) and the arm64 Image header
(Documentation/arch/arm64/booting.rst). Knows nothing of loading.
"""

from __future__ import annotations

import dataclasses
import os
import struct

from kdumpd.errors import LoadError, os_reason

HEADER_BYTES = 0x268


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class KernelHeader:
    """`init_size_bytes` is the memory the kernel wants from its load address on until it has set itself up."""

    init_size_bytes: int
    cmdline_limit: int | None = None


def parse_header(head: bytes, arch: str, name: str) -> KernelHeader | None:
    """The header of the kernel file `name`, given its first bytes; None for architectures without a known header.

    Raises LoadError when the file is no kernel of this architecture.
    """
    if arch == "x86_64":
        return _parse_bzimage(head, name)
    if arch == "aarch64":
        return _parse_arm64(head, name)
    return None


def _parse_bzimage(head: bytes, name: str) -> KernelHeader:
    if len(head) < HEADER_BYTES or head[0x1FE:0x200] != b"\x55\xaa" or head[0x202:0x206] != b"HdrS":
        raise LoadError(
            f"{name} is not a Linux kernel for x86 (no bzImage header)",
            hint="reinstall the package of the running kernel",
        )
    (version,) = struct.unpack_from("<H", head, 0x206)
    if version < 0x20C:  # without xloadflags the kernel's own loader refuses it
        raise LoadError(f"{name} speaks boot protocol {version >> 8}.{version & 0xFF:02}, kexec needs 2.12")
    (cmdline_limit,) = struct.unpack_from("<I", head, 0x238)
    (init_size,) = struct.unpack_from("<I", head, 0x260)
    return KernelHeader(init_size_bytes=init_size, cmdline_limit=cmdline_limit)


def _parse_arm64(head: bytes, name: str) -> KernelHeader:
    if len(head) < 0x40 or head[0x38:0x3C] != b"ARM\x64":
        raise LoadError(
            f"{name} is not a plain arm64 Image", hint="install an uncompressed Image of the running kernel"
        )
    (image_size,) = struct.unpack_from("<Q", head, 0x10)
    return KernelHeader(init_size_bytes=image_size)


def read_header(path: str | os.PathLike[str], arch: str) -> KernelHeader | None:
    """`parse_header` of a file. Raises LoadError also when the file cannot be read."""
    try:
        with open(path, "rb") as file:
            return parse_header(file.read(HEADER_BYTES), arch, str(path))
    except OSError as error:
        raise LoadError(f"The kernel {path} cannot be read: {os_reason(error)}", errno=error.errno) from error
