# SPDX-License-Identifier: GPL-2.0-or-later
"""The header of a kernel file: which machine is it for, is it whole, and how much memory does it want?

Knows the x86 boot protocol (Documentation/arch/x86/boot.rst), the Image header of arm64, riscv and loongarch
(Documentation/arch/arm64/booting.rst, Documentation/arch/riscv/boot-image-header.rst), ELF, and how Images are packed:
gzip, or as an EFI program that unpacks itself (drivers/firmware/efi/libstub/zboot-header.S). Knows nothing of loading.
"""

from __future__ import annotations

import os
import struct
import zlib
from typing import NamedTuple, Protocol

from kdumpd.errors import LoadError, os_reason

HEADER_BYTES = 0x1000
_UNPACKED_LIMIT = 1 << 30
_PART = 1 << 20
_REINSTALL = "reinstall the package of the running kernel"

# uname -m by the machine field of ELF (elf.h) and of PE (linux/pe.h)
_ELF_MACHINES = {21: "ppc64le", 22: "s390x", 62: "x86_64", 183: "aarch64", 243: "riscv64", 258: "loongarch64"}
_PE_MACHINES = {0x8664: "x86_64", 0xAA64: "aarch64", 0x5064: "riscv64", 0x6264: "loongarch64"}
_IMAGE_MAGIC = {b"ARM\x64": "aarch64", b"RSC\x05": "riscv64"}
_PE_MAGIC_LOONGARCH = b"\xcd\x23\x82\x81"

# Machines all of whose kernels can be told by their header; s390x has one that begins like nothing in particular.
_KNOWN_FORMS = frozenset({*_PE_MACHINES.values(), "ppc64le"})

# struct setup_header: loadflags, xloadflags and what kexec needs of them (bzImage64_probe, kexec-bzimage64.c)
_LOADED_HIGH = 1
_KERNEL_64, _ABOVE_4G = 1, 2


class KernelHeader(NamedTuple):
    """`init_size_bytes` is the memory the kernel wants from its load address on until it has set itself up.

    `file_bytes` is what the file has at least if it is whole. `packed` is gzip or zstd for an Image that the kernel's
    own loader does not take as it is, and `payload_offset` where it begins.
    """

    arch: str
    init_size_bytes: int
    cmdline_limit: int | None = None
    file_bytes: int = 0
    packed: str | None = None
    payload_offset: int = 0


def parse_header(head: bytes, arch: str, name: str) -> KernelHeader | None:
    """The header of the kernel file `name`, given its first bytes; None for what has no header that is known here.

    Raises LoadError when the file is no kernel, or one of another machine than `arch` (as uname -m has it).
    """
    try:
        header = _identify(head, name)
    except struct.error:
        header = None  # it ends in the middle of its header
    if header is None:
        if arch in _KNOWN_FORMS:
            raise LoadError(f"{name} is not a Linux kernel", hint=_REINSTALL)
        return None
    if header.arch != arch:
        raise LoadError(f"{name} is a kernel for {header.arch}, this machine is {arch}", hint=_REINSTALL)
    return header


def _identify(head: bytes, name: str) -> KernelHeader | None:
    if head[0x1FE:0x200] == b"\x55\xaa" and head[0x202:0x206] == b"HdrS" and len(head) >= 0x268:
        return _bzimage(head, name)
    if head[:4] == b"\x7fELF" and len(head) >= 0x40:
        return _elf(head)
    if head[:2] == b"MZ" and head[4:8] == b"zimg":
        return _zboot(head, name)
    if head[:2] == b"\x1f\x8b":
        inner = _image(_beginning(head))
        return None if inner is None else inner._replace(packed="gzip", file_bytes=0)
    return _image(head)


def _bzimage(head: bytes, name: str) -> KernelHeader:
    (version,) = struct.unpack_from("<H", head, 0x206)
    if version < 0x20C:  # without xloadflags the kernel's own loader refuses it
        raise LoadError(f"{name} speaks boot protocol {version >> 8}.{version & 0xFF:02}, kexec needs 2.12")
    (flags,) = struct.unpack_from("<H", head, 0x236)
    if not head[0x211] & _LOADED_HIGH or not flags & _KERNEL_64 or not flags & _ABOVE_4G:
        raise LoadError(f"{name} cannot be started by kexec: it is not a relocatable 64-bit kernel", hint=_REINSTALL)
    (size,) = struct.unpack_from("<I", head, 0x1F4)  # in units of 16 bytes
    (cmdline_limit,) = struct.unpack_from("<I", head, 0x238)
    (init_size,) = struct.unpack_from("<I", head, 0x260)
    return KernelHeader(
        arch="x86_64",
        init_size_bytes=init_size,
        cmdline_limit=cmdline_limit,
        file_bytes=((head[0x1F1] or 4) + 1) * 512 + size * 16,
    )


def _image(head: bytes) -> KernelHeader | None:
    arch = _IMAGE_MAGIC.get(head[0x38:0x3C])
    if arch is None and head[:2] == b"MZ" and head[0x38:0x3C] == _PE_MAGIC_LOONGARCH:
        arch = _pe_machine(head)
    if arch is None or len(head) < 0x40:
        return None
    (image_size,) = struct.unpack_from("<Q", head, 0x10)  # with .bss: the file may be shorter
    return KernelHeader(arch=arch, init_size_bytes=image_size)


def _zboot(head: bytes, name: str) -> KernelHeader | None:
    offset, size = struct.unpack_from("<II", head, 8)
    packing = head[0x18:0x38].split(b"\0")[0].decode(errors="replace")
    if not packing.startswith(("gzip", "zstd")):
        raise LoadError(
            f"{name} is packed with {packing or 'something unnamed'}, which kdumpd cannot unpack",
            hint="install an unpacked Image of the running kernel",
        )
    arch = _pe_machine(head)
    if arch is None:
        return None
    packed = "gzip" if packing.startswith("gzip") else "zstd"
    # How large it gets is only known once it is unpacked; `unpacked` looks again.
    return KernelHeader(arch=arch, init_size_bytes=0, packed=packed, payload_offset=offset, file_bytes=offset + size)


def _pe_machine(head: bytes) -> str | None:
    (offset,) = struct.unpack_from("<I", head, 0x3C)
    if head[offset : offset + 4] != b"PE\0\0" or len(head) < offset + 6:
        return None
    return _PE_MACHINES.get(struct.unpack_from("<H", head, offset + 4)[0])


def _elf(head: bytes) -> KernelHeader | None:
    order = {1: "<", 2: ">"}.get(head[5])
    if head[4] != 2 or order is None:  # 64 bit only
        return None
    (machine,) = struct.unpack_from(order + "H", head, 18)
    (start,) = struct.unpack_from(order + "Q", head, 32)
    entry_size, count = struct.unpack_from(order + "HH", head, 54)
    spans = []
    for index in range(count):
        at = start + index * entry_size
        if at + 56 > len(head):
            break
        if struct.unpack_from(order + "I", head, at)[0] == 1:  # PT_LOAD
            paddr, _, memory_size = struct.unpack_from(order + "QQQ", head, at + 24)
            spans.append((paddr, paddr + memory_size))
    if machine not in _ELF_MACHINES or not spans:
        return None
    size = max(end for _, end in spans) - min(begin for begin, _ in spans)
    return KernelHeader(arch=_ELF_MACHINES[machine], init_size_bytes=size)


def read_header(path: str | os.PathLike[str], arch: str) -> KernelHeader | None:
    """`parse_header` of a file. Raises LoadError also when the file cannot be read."""
    try:
        with open(path, "rb") as file:
            return parse_header(file.read(HEADER_BYTES), arch, str(path))
    except OSError as error:
        raise LoadError(f"The kernel {path} cannot be read: {os_reason(error)}", errno=error.errno) from error


def unpacked(fd: int, header: KernelHeader, name: str) -> int:
    """A descriptor of memory (memfd_create(2)) with the Image that `fd` holds packed. The caller closes it.

    Raises LoadError when the file is damaged, or holds something else than an Image for the same machine.
    """
    plain = os.memfd_create("kernel", os.MFD_CLOEXEC)
    try:
        whole = _unpack(fd, header, plain)
        inner = _image(os.pread(plain, HEADER_BYTES, 0)) if whole else None
        if inner is None or inner.arch != header.arch:
            raise LoadError(f"{name} is cut short or holds no kernel", hint=_REINSTALL)
    except (OSError, zlib.error) as error:
        os.close(plain)
        raise LoadError(f"{name} is damaged: {error}", hint=_REINSTALL) from error
    except LoadError:
        os.close(plain)
        raise
    return plain


def _unpack(fd: int, header: KernelHeader, plain: int) -> bool:
    """Copies what is packed to `plain`; False when it ends too early. Raises OSError, zlib.error."""
    decoder = _decoder(header.packed)
    offset, room = header.payload_offset, _UNPACKED_LIMIT
    while not decoder.eof and room > 0 and (part := os.pread(fd, _PART, offset)):
        offset += len(part)
        data = decoder.decompress(part)
        room -= len(data)
        os.write(plain, data)
    return decoder.eof


class _Decoder(Protocol):
    @property
    def eof(self) -> bool: ...
    def decompress(self, data: bytes, /) -> bytes: ...


class _Zstd:
    """zstandard's decoder with the errors of zlib's."""

    def __init__(self) -> None:
        import zstandard  # rare: most kernels are loaded as they are

        self._error = zstandard.ZstdError
        self._decoder = zstandard.ZstdDecompressor().decompressobj()

    @property
    def eof(self) -> bool:
        return self._decoder.eof

    def decompress(self, data: bytes, /) -> bytes:
        try:
            return self._decoder.decompress(data)
        except self._error as error:
            raise zlib.error(str(error)) from error


def _decoder(packed: str | None) -> _Decoder:
    return _Zstd() if packed == "zstd" else zlib.decompressobj(wbits=31)


def _beginning(packed: bytes) -> bytes:
    """The first bytes of what is gzipped in `packed`, itself only a beginning; none when it is damaged."""
    try:
        return _decoder("gzip").decompress(packed)[:HEADER_BYTES]
    except zlib.error:
        return b""
