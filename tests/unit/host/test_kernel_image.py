# SPDX-License-Identifier: GPL-2.0-or-later
"""kdumpd.host.kernel_image: which machine a kernel file is for, and what it takes to load it."""

from __future__ import annotations

import contextlib
import gzip
import os
import struct
from pathlib import Path

import pytest
import zstandard
from fake_machine import bzimage
from hypothesis import given
from hypothesis import strategies as st

from kdumpd.errors import LoadError
from kdumpd.host.kernel_image import KernelHeader, parse_header, read_header, unpacked


def image(magic: bytes = b"ARM\x64", size: int = 40 << 20) -> bytes:
    """The beginning of an Image of arm64 or riscv."""
    head = bytearray(0x2000)
    struct.pack_into("<Q", head, 0x10, size)
    head[0x38:0x3C] = magic
    return bytes(head)


def elf(machine: int, order: str = "<") -> bytes:
    """An ELF kernel with two segments."""
    data = 1 if order == "<" else 2
    head = b"\x7fELF" + bytes([2, data, 1]) + bytes(9)
    head += struct.pack(order + "HHIQQQIHHHHHH", 2, machine, 1, 0, 64, 0, 0, 64, 56, 2, 0, 0, 0)
    for paddr in (0x1000000, 0x3000000):
        head += struct.pack(order + "IIQQQQQQ", 1, 5, 0x1000, paddr, paddr, 0x800, 0x100000, 0x1000)
    return head.ljust(0x1000, b"\0")


def packed(data: bytes) -> bytes:
    """The same bytes in each process: they are part of a test's parameters."""
    return gzip.compress(data, mtime=0)


def zboot(payload: bytes, packing: bytes, machine: int = 0xAA64) -> bytes:
    """An EFI program that holds a packed Image."""
    head = bytearray(0x200)
    head[:2], head[4:8] = b"MZ", b"zimg"
    struct.pack_into("<II", head, 8, len(head), len(payload))
    head[0x18 : 0x18 + len(packing)] = packing
    struct.pack_into("<I", head, 0x3C, 0x80)
    head[0x80:0x86] = b"PE\0\0" + struct.pack("<H", machine)
    return bytes(head) + payload


def _open(tmp_path: Path, data: bytes) -> int:
    (tmp_path / "kernel").write_bytes(data)
    return os.open(tmp_path / "kernel", os.O_RDONLY)


@pytest.mark.parametrize(
    ("data", "arch", "size"),
    [
        (bzimage(init_size=52 << 20), "x86_64", 52 << 20),
        (image(), "aarch64", 40 << 20),
        (image(b"RSC\x05"), "riscv64", 40 << 20),
        (elf(21), "ppc64le", 0x2100000),
        (elf(62), "x86_64", 0x2100000),
        (elf(22, ">"), "s390x", 0x2100000),
        (packed(image()), "aarch64", 40 << 20),
        (zboot(b"", b"gzip"), "aarch64", 0),
        (zboot(b"", b"zstd22", 0x6264), "loongarch64", 0),
    ],
    ids=["bzImage", "arm64", "riscv", "elf-ppc", "elf-x86", "elf-s390", "gzip", "zboot-gzip", "zboot-zstd"],
)
def test_each_form_names_its_machine(data: bytes, arch: str, size: int) -> None:
    header = parse_header(data[:0x1000], arch, "vmlinuz")
    assert header is not None
    assert (header.arch, header.init_size_bytes) == (arch, size)
    other = "aarch64" if arch == "x86_64" else "x86_64"
    with pytest.raises(LoadError, match=f"is a kernel for {arch}, this machine is {other}"):
        parse_header(data[:0x1000], other, "vmlinuz")


@pytest.mark.parametrize("arch", ["x86_64", "aarch64", "ppc64le"])
@pytest.mark.parametrize(
    "data",
    [b"", b"MZ", b"\x7fELF", b"\x1f\x8b", b"#!/bin/sh\n", b"\x7fELF" + b"\xff" * 0xFFC],
    ids=["empty", "MZ", "elf-cut", "gzip-cut", "script", "elf-junk"],
)
def test_what_is_no_kernel_is_said_so(data: bytes, arch: str) -> None:
    with pytest.raises(LoadError, match="is not a Linux kernel"):
        parse_header(data, arch, "vmlinuz")


def test_a_form_that_cannot_be_told_is_left_to_the_kernel() -> None:
    assert parse_header(b"\0" * 0x1000, "s390x", "image") is None


@pytest.mark.parametrize(("at", "value", "words"), [(0x211, 0, "relocatable"), (0x236, 1, "relocatable")])
def test_what_kexec_does_not_start(at: int, value: int, words: str) -> None:
    data = bytearray(bzimage())
    data[at] = value
    with pytest.raises(LoadError, match=words):
        parse_header(bytes(data), "x86_64", "vmlinuz")


@pytest.mark.parametrize(
    "data",
    [
        packed(image()),
        zboot(packed(image()), b"gzip"),
        zboot(zstandard.compress(image()), b"zstd22"),
    ],
    ids=["gzip", "zboot-gzip", "zboot-zstd"],
)
def test_packed_kernels_are_unpacked(tmp_path: Path, data: bytes) -> None:
    fd = _open(tmp_path, data)
    header = read_header(tmp_path / "kernel", "aarch64")
    assert header is not None
    plain = unpacked(fd, header, "vmlinuz")
    assert os.pread(plain, 1 << 20, 0) == image()
    os.close(plain)
    os.close(fd)


@pytest.mark.parametrize(
    "data",
    [
        packed(image())[:-40],
        packed(image(b"RSC\x05")),
        packed(b"no kernel" * 1000),
        zboot(b"junk" * 100, b"gzip"),
        zboot(zstandard.compress(image())[:-9], b"zstd22"),
        zboot(b"junk" * 100, b"zstd22"),
    ],
    ids=["cut", "riscv", "text", "zboot-junk", "zboot-cut", "zboot-zstd-junk"],
)
def test_damaged_ones_are_refused_and_nothing_stays_open(tmp_path: Path, data: bytes) -> None:
    fd = _open(tmp_path, data)
    packed = "zstd" if b"zstd22" in data[:64] else "gzip"
    offset = 0x200 if data[:2] == b"MZ" else 0
    header = KernelHeader(arch="aarch64", init_size_bytes=0, packed=packed, payload_offset=offset)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(LoadError, match=r"damaged|cut short"):
        unpacked(fd, header, "vmlinuz")
    assert len(os.listdir("/proc/self/fd")) <= before  # less when what another test left is freed
    os.close(fd)


def test_other_packings_are_named() -> None:
    with pytest.raises(LoadError, match="packed with lzma"):
        parse_header(zboot(b"", b"lzma"), "aarch64", "vmlinuz")


@given(st.binary(max_size=0x1000), st.sampled_from([b"", b"MZ\0\0zimg", b"\x7fELF\x02\x01", b"\x1f\x8b\x08", b"MZ"]))
def test_no_bytes_make_it_stumble(data: bytes, begin: bytes) -> None:
    for arch in ("x86_64", "aarch64", "loongarch64", "s390x"):
        with contextlib.suppress(LoadError):
            parse_header(begin + data, arch, "vmlinuz")
