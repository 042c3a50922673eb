# SPDX-License-Identifier: GPL-2.0-or-later
"""How an arm64 kernel wants to be started, and where its parts go in the reserved memory.

Source: Documentation/arch/arm64/booting.rst. Kernels with kexec_load(2) jump to the entry with x0 = 0
(machine_kexec() in arch/arm64/kernel/machine_kexec.c passes a device tree for kexec_file_load(2) only), so a few
instructions of ours go in between. Pure: nothing here touches the machine.
"""

from __future__ import annotations

import dataclasses
import errno
import struct
from collections.abc import Sequence

from kdumpd.errors import LoadError
from kdumpd.host.fdt import DeviceTree
from kdumpd.host.kernel_image import HEADER_BYTES
from kdumpd.host.reservation import MemoryRange

ALIGN = 64 << 10  # whole pages whichever size they have (4, 16 or 64 KiB)
_KERNEL_ALIGN = 2 << 20
_BIG_ENDIAN = 1
_SEED_BYTES = 128


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Physical addresses, in bytes; `kernel_bytes` is all that the kernel takes with .bss. `entry` is ours."""

    kernel: int
    kernel_bytes: int
    initrd: int
    initrd_bytes: int
    dtb: int
    core: int
    entry: int


def kernel_place(head: bytes, name: str) -> tuple[int, int]:
    """(text_offset, image_size) of the Image that begins with `head`. Raises LoadError for one that cannot be used."""
    text_offset, image_size, flags = struct.unpack_from("<QQQ", head[:HEADER_BYTES], 8)
    if image_size == 0:
        raise LoadError(f"{name} is a kernel before 3.17, whose size is not known", hint="use a newer kernel")
    if flags & _BIG_ENDIAN:
        raise LoadError(f"{name} is a big-endian kernel, which kdumpd does not load", hint="use kexec-tools")
    return text_offset, image_size


def place(reserved: MemoryRange, kernel: tuple[int, int], initrd_bytes: int, dtb_bytes: int, core_bytes: int) -> Layout:
    """Where everything goes in `reserved`, from its beginning on. Raises LoadError when it does not fit."""
    text_offset, kernel_bytes = kernel
    at = _up(reserved.start, _KERNEL_ALIGN) + text_offset
    initrd = _up(at + kernel_bytes, ALIGN)
    dtb = _up(initrd + initrd_bytes, ALIGN)
    if dtb // _KERNEL_ALIGN != (dtb + dtb_bytes - 1) // _KERNEL_ALIGN:
        dtb = _up(dtb, _KERNEL_ALIGN)  # kernels before 4.2 map one block for it
    core = _up(dtb + dtb_bytes, ALIGN)
    entry = _up(core + core_bytes, ALIGN)
    if entry + ALIGN - 1 > reserved.last:
        needed = entry + ALIGN - reserved.start
        raise LoadError(
            "Kernel and image do not fit into the memory reserved by crashkernel=: they take"
            f" {-(-needed // (1 << 20))} of {reserved.size_bytes >> 20} MiB",
            hint="boot with a larger crashkernel=, for example crashkernel=256M",
            errno=errno.EADDRNOTAVAIL,
        )
    return Layout(
        kernel=at, kernel_bytes=kernel_bytes, initrd=initrd, initrd_bytes=initrd_bytes, dtb=dtb, core=core, entry=entry
    )


def _up(value: int, step: int) -> int:
    return -(-value // step) * step


def entry_code(kernel: int, dtb: int) -> bytes:
    """Instructions that start the kernel at `kernel` with x0 = `dtb` and x1 to x3 = 0, all addresses physical."""
    words = [*_move(4, kernel), *_move(0, dtb), *(0xD2800000 | register for register in (1, 2, 3)), 0xD61F0080]
    return struct.pack(f"<{len(words)}I", *words)  # instructions are little-endian on any arm64


def _move(register: int, value: int) -> list[int]:
    """MOVZ and three MOVK: a constant of 64 bits."""
    first = 0xD2800000 | (value & 0xFFFF) << 5 | register
    return [first, *(0xF2800000 | part << 21 | (value >> 16 * part & 0xFFFF) << 5 | register for part in (1, 2, 3))]


def prepare_tree(
    tree: DeviceTree,
    *,
    cmdline: str,
    initrd: tuple[int, int],
    core: tuple[int, int],
    usable: Sequence[MemoryRange],
    ram: Sequence[MemoryRange],
    seed: bytes,
) -> None:
    """Turns the running kernel's tree into the capture kernel's; `initrd` and `core` are (address, size).

    Called with the right sizes and any addresses it gives the right size of the tree. The properties are those that
    drivers/of/kexec.c writes. `seed` is random: the one that the boot loader left was used up.
    """
    chosen = tree.root.child("chosen")
    for name in ("kaslr-seed", "linux,initrd-start", "linux,initrd-end", "linux,booted-from-kexec"):
        chosen.properties.pop(name, None)
    if "linux,uefi-mmap-start" not in chosen.properties and not _knows(tree, usable):
        # A file from the kernel's build: the boot loader would have written the size of the memory into it.
        tree.set_memory([(span.start, span.size_bytes) for span in ram])
    chosen.set_text("bootargs", cmdline)
    chosen.properties["linux,initrd-start"] = struct.pack(">Q", initrd[0])
    chosen.properties["linux,initrd-end"] = struct.pack(">Q", sum(initrd))
    chosen.properties["linux,elfcorehdr"] = tree.encode_ranges([core])
    chosen.properties["linux,usable-memory-range"] = tree.encode_ranges(
        [(span.start, span.size_bytes) for span in usable]
    )
    chosen.properties["rng-seed"] = seed[:_SEED_BYTES]


def _knows(tree: DeviceTree, usable: Sequence[MemoryRange]) -> bool:
    """True when all of `usable` lies in memory that the tree speaks of."""
    memory = tree.memory()
    return all(any(address <= span.start and span.last < address + size for address, size in memory) for span in usable)
