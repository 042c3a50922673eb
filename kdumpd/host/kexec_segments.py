# SPDX-License-Identifier: GPL-2.0-or-later
"""kexec_load(2) without kexec-tools: core header, device tree and entry are made here. For arm64, whose distribution
kernels often lack kexec_file_load(2).

Source: kexec_load(2), kernel/kexec.c. What was made is judged like kexec-tools' work before the kernel sees it, since
the kernel drops the old capture kernel first.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import errno
import mmap
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from kdumpd.errors import LoadError, UnsupportedError, os_reason
from kdumpd.host import arm64_boot
from kdumpd.host.core_elf import MachineMemory, make_core, parse_core, read_machine_memory
from kdumpd.host.core_header import header_problems
from kdumpd.host.fdt import DeviceTree, parse_fdt
from kdumpd.host.kernel_image import HEADER_BYTES, unpacked
from kdumpd.host.kexec import SYSCALLS, read_loaded, until_free
from kdumpd.host.kexec_checks import check_pair
from kdumpd.host.kexec_errors import load_error
from kdumpd.host.kexec_pair import OpenPair
from kdumpd.host.security import read_security

FIRMWARE_TREE = "/sys/firmware/fdt"  # what the boot loader handed over (drivers/of/fdt.c)
ARCH = "aarch64"
_ON_CRASH = 1
_EM_AARCH64 = 183 << 16
Buffer = bytes | mmap.mmap


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """What goes to physical `address`; the kernel zeroes the memory from the end of `data` up to `memory_bytes`."""

    address: int
    memory_bytes: int
    data: Buffer


# (entry, segments) -> errno, 0 when it went well
SegmentCall = Callable[[int, Sequence[Segment]], int]


class SegmentLoader:
    """Loads with kexec_load(2). `tree` is a device tree to use instead of the boot loader's; `call` only another one in
    tests.
    """

    def __init__(
        self, arch: str, *, root: Path = Path("/"), tree: Path | None = None, call: SegmentCall | None = None
    ) -> None:
        self._arch = arch
        self._root = root
        self._tree = tree
        self._call = call or kexec_load

    def load(self, opened: OpenPair) -> None:
        """Checks kernel and image, makes the rest, judges it and loads. Raises LoadError; UnsupportedError where
        kexec-tools may know better (another architecture, a kernel that does not say enough of itself).
        """
        if self._arch != ARCH:
            raise UnsupportedError(f"kdumpd itself loads with kexec_load(2) on {ARCH} only, this is {self._arch}")
        security = read_security(self._root)
        if security.lockdown not in (None, "none"):
            raise LoadError(
                f"The kernel is locked down ({security.lockdown}) and refuses kexec_load(2)",
                hint="set kexec_syscall to kexec_file_load in /etc/kdump.conf",
                errno=errno.EPERM,
            )
        header = check_pair(opened, self._arch, self._root)
        with contextlib.ExitStack() as stack:
            kernel_fd = opened.kernel_fd
            if header is not None and header.packed is not None:
                kernel_fd = unpacked(kernel_fd, header, str(opened.pair.kernel))
                stack.callback(os.close, kernel_fd)
            entry, segments = self._prepare(opened, kernel_fd)
            code = until_free(lambda: self._call(entry, segments))
        if code != 0:
            raise load_error(code, security, syscall="kexec_load")
        if not read_loaded(self._root):
            raise LoadError(
                "The kernel took the capture kernel without an error, yet says that none is loaded",
                hint="look at the kernel's log: dmesg",
            )

    def _prepare(self, opened: OpenPair, kernel_fd: int) -> tuple[int, list[Segment]]:
        name = str(opened.pair.kernel)
        tree = self._read_tree()
        memory = read_machine_memory(self._root)
        if not memory.reserved:
            raise LoadError("No memory is reserved for a capture kernel", hint="boot with crashkernel=256M")
        core = _judged(make_core(memory, self._arch), memory)
        kernel, initrd = _mapped(kernel_fd, name), _mapped(opened.initrd_fd, str(opened.pair.initrd))
        # crashk_res is what segments may lie in; the other range, for old devices' DMA, lies below it
        # (reserve_crashkernel_low() in the kernel).
        main = max(memory.reserved, key=lambda span: span.start)
        usable = [main, *(span for span in memory.reserved if span != main)]
        seed = os.urandom(128)

        def finish(initrd_at: int, core_at: int) -> bytes:
            arm64_boot.prepare_tree(
                tree,
                cmdline=opened.pair.cmdline,
                initrd=(initrd_at, len(initrd)),
                core=(core_at, len(core)),
                usable=usable,
                ram=memory.ram,
                seed=seed,
            )
            return tree.to_bytes()

        layout = arm64_boot.place(
            main, arm64_boot.kernel_place(kernel[:HEADER_BYTES], name), len(initrd), len(finish(0, 0)), len(core)
        )
        return layout.entry, [
            _segment(layout.kernel, kernel, layout.kernel_bytes),
            _segment(layout.initrd, initrd),
            _segment(layout.dtb, finish(layout.initrd, layout.core)),
            _segment(layout.core, core),
            _segment(layout.entry, arm64_boot.entry_code(layout.kernel, layout.dtb)),
        ]

    def _read_tree(self) -> DeviceTree:
        path = self._root / FIRMWARE_TREE.lstrip("/") if self._tree is None else self._tree
        try:
            return parse_fdt(path.read_bytes(), str(path))
        except OSError as error:
            sentence = f"the device tree {path} cannot be read: {os_reason(error)}"
            if self._tree is None:
                raise UnsupportedError(sentence, hint="name the board's .dtb file, or use kexec-tools") from error
            raise LoadError(sentence, hint="name the .dtb file the board boots with") from error


def _judged(core: bytes, memory: MachineMemory) -> bytes:
    problems = header_problems(parse_core(core, memory.text), memory.ram, memory.reserved)
    if problems:
        raise UnsupportedError(f"a core header made from what this kernel says could not be read: {problems[0]}")
    return core


def _mapped(fd: int, name: str) -> mmap.mmap:
    try:
        # Private and writable, which is what ctypes wants; nothing is written.
        return mmap.mmap(fd, 0, access=mmap.ACCESS_COPY)
    except (OSError, ValueError) as error:
        reason = os_reason(error) if isinstance(error, OSError) else "it is empty"
        raise LoadError(f"{name} cannot be read: {reason}") from error


def _segment(address: int, data: Buffer, memory_bytes: int | None = None) -> Segment:
    size = max(len(data), memory_bytes or 0)
    return Segment(address=address, memory_bytes=-(-size // arm64_boot.ALIGN) * arm64_boot.ALIGN, data=data)


class _KexecSegment(ctypes.Structure):
    """struct kexec_segment, include/uapi/linux/kexec.h."""

    _fields_ = (
        ("buf", ctypes.c_void_p),
        ("bufsz", ctypes.c_size_t),
        ("mem", ctypes.c_size_t),
        ("memsz", ctypes.c_size_t),
    )


def kexec_load(entry: int, segments: Sequence[Segment]) -> int:
    """The system call itself, for a crash; returns errno, 0 when it went well."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    table = (_KexecSegment * len(segments))()
    kept: list[object] = []
    for row, segment in zip(table, segments, strict=True):
        data = segment.data
        size = len(data)
        buffer = (
            (ctypes.c_char * size).from_buffer(data)
            if isinstance(data, mmap.mmap)
            else ctypes.create_string_buffer(data, size)
        )
        kept.append(buffer)
        row.buf, row.bufsz, row.mem, row.memsz = ctypes.addressof(buffer), size, segment.address, segment.memory_bytes
    result = libc.syscall(
        ctypes.c_long(SYSCALLS[ARCH][1]),
        ctypes.c_ulong(entry),
        ctypes.c_ulong(len(segments)),
        ctypes.byref(table),
        ctypes.c_ulong(_ON_CRASH | _EM_AARCH64),
    )
    return ctypes.get_errno() if result != 0 else 0
