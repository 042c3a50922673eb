# SPDX-License-Identifier: GPL-2.0-or-later
"""How much reserved memory a capture needs. A pure sum of documented terms, all in bytes.

The reserved memory holds everything the capture kernel has: the kernel from its load address on, the packed image
until it is unpacked, the unpacked image for good (its root is a ramfs), and what the collector allocates beside it.
The packed image is freed before the collector starts, so only the larger of the two counts.
"""

from __future__ import annotations

import dataclasses

from kdumpd.host.cmdline import CPU_BYTES

MIB = 1 << 20

# The collector's own memory. Where there is plenty its peak is 50 MiB, of which about half are pages of programs that
# are read from the squashfs and can be dropped. With crashkernel=96M, 26 to 29 MiB were measured in all.
COLLECTOR_BYTES = 28 * MIB

# How much of the collector's measured peak it does without where memory is scarce, such pages and what glibc keeps:
# less than was found, so that no measurement is made small.
PROGRAM_BYTES = 22 * MIB

# A measurement larger than this, beside the bitmaps, is none: a manifest is a file, and may say anything.
MOST_MEASURED_BYTES = 1 << 30

# What a kernel allocates beyond `init_size` of its header, which holds room to unpack itself that is free again
# later: memmap of the reserved area (1.6 %), slab, page tables, queues of devices. Measured on one processor.
BASE_BYTES = 8 * MIB

# The collector holds two bitmaps with one bit for each page of 4 KiB of the crashed memory.
BITMAP_SHIFT = 12 + 3 - 1

# What paramiko and its cryptography take beside that, where dumps go over SSH: measured as the difference of peaks.
SSH_BYTES = 18 * MIB

# No term for LUKS: the memory that a key derivation asks for (argon2id, up to 1 GiB by cryptsetup's own choice) is not
# needed, since the capture kernel gets the key itself (host/crypt_keys.py). Where it does not, such targets are refused
# (TargetLockedError).

# Until an image was built: a kernel of a distribution, and an image for a local target.
TYPICAL_KERNEL_BYTES = 48 * MIB
TYPICAL_PACKED_BYTES = 10 * MIB
TYPICAL_UNPACKED_BYTES = 30 * MIB
TYPICAL_MODULES_BYTES = 3 * MIB


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """The terms of the estimate. `collector_bytes` is what was measured of it in a capture, 0 for nothing."""

    kernel_bytes: int
    packed_bytes: int
    unpacked_bytes: int
    bitmap_bytes: int
    modules_bytes: int = 0
    collector_bytes: int = 0
    cpu_bytes: int = 0
    ssh_bytes: int = 0

    @property
    def total_bytes(self) -> int:
        """What the reservation should have at least."""
        return sum(size for _, size in self.terms())

    def terms(self) -> tuple[tuple[str, int], ...]:
        """What is added up, each with its name."""
        late = max(COLLECTOR_BYTES + self.bitmap_bytes + self.ssh_bytes, self.collector_bytes)
        terms = (
            ("the capture kernel", self.kernel_bytes),
            ("the unpacked image", self.unpacked_bytes),
            ("its modules, once they are loaded", self.modules_bytes),
            ("the packed image, then the collector", max(self.packed_bytes, late)),
            ("the rest of a booted kernel", BASE_BYTES),
        )
        return (*terms, ("the processors of nr_cpus", self.cpu_bytes)) if self.cpu_bytes else terms


def estimate(
    *,
    kernel_bytes: int | None,
    packed_bytes: int | None,
    unpacked_bytes: int | None,
    memory_bytes: int,
    modules_bytes: int | None = None,
    measured_bytes: int | None = None,
    cpus: int = 1,
    ssh: bool = False,
) -> Need:
    """The need of a kernel (`init_size` of its header) and an image; None for what is not known yet.

    `memory_bytes` is the RAM of the machine. `cpus` is what kdump.conf demands; what the service chooses by itself
    takes only what is over, so it is no need. `modules_bytes` are the modules as they lie in the image, which a kernel
    copies when it loads them. `measured_bytes` is the most that the collector had in the last real capture: it counts
    where it is more than was thought, never less, since the next crash may be a larger one. `ssh` says that
    some target is an SSH server.
    """
    bitmap_bytes = memory_bytes >> BITMAP_SHIFT
    if measured_bytes is None or not 0 < measured_bytes <= MOST_MEASURED_BYTES + bitmap_bytes:
        measured_bytes = 0
    return Need(
        kernel_bytes=kernel_bytes or TYPICAL_KERNEL_BYTES,
        packed_bytes=packed_bytes or TYPICAL_PACKED_BYTES,
        unpacked_bytes=unpacked_bytes or TYPICAL_UNPACKED_BYTES,
        bitmap_bytes=bitmap_bytes,
        modules_bytes=TYPICAL_MODULES_BYTES if modules_bytes is None else modules_bytes,
        collector_bytes=max(0, measured_bytes - PROGRAM_BYTES),
        cpu_bytes=(cpus - 1) * CPU_BYTES,
        ssh_bytes=SSH_BYTES if ssh else 0,
    )


def recommended_bytes(required_bytes: int) -> int:
    """What to reserve for a capture that needs `required_bytes`: a quarter more, in steps of 64 MiB, 256 MiB at least.

    An estimate is no measurement, and the next kernel and image are a little larger.
    """
    step = 64 * MIB
    return max(256 * MIB, -(-required_bytes * 5 // 4 // step) * step)


def mib(size_bytes: int, *, up: bool = False) -> str:
    """`size_bytes` in whole MiB, for a sentence. A need is rounded up, what there is is rounded down."""
    return f"{-(-size_bytes // MIB) if up else size_bytes // MIB} MiB"
