# SPDX-License-Identifier: GPL-2.0-or-later
"""The memory that the running kernel really set aside for a capture kernel.

Knows sysfs under its old and new names (Documentation/ABI/testing/sysfs-kernel-kexec-kdump) and /proc/iomem.
Refuses to know what was asked for: that is `crashkernel.py`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from kdumpd.host.files import read_int, read_text

SIZE_PATHS = ("/sys/kernel/kexec/crash_size", "/sys/kernel/kexec_crash_size")  # the new name since v6.19

_IOMEM_LINE = re.compile(r"^\s*([0-9a-f]+)-([0-9a-f]+) : (.*)$")


class MemoryRange(NamedTuple):
    """Physical addresses, both inclusive as in /proc/iomem."""

    start: int
    last: int

    @property
    def size_bytes(self) -> int:
        """Bytes in the range."""
        return self.last - self.start + 1


class Reservation(NamedTuple):
    """`size_bytes` is what an image may use; `ranges` is empty for readers without CAP_SYS_ADMIN."""

    size_bytes: int
    ranges: tuple[MemoryRange, ...] = ()


def parse_iomem(text: str, name: str) -> tuple[MemoryRange, ...]:
    """The ranges called `name` in the text of /proc/iomem; none when the kernel hides addresses (all zero)."""
    ranges = []
    for line in text.splitlines():
        match = _IOMEM_LINE.match(line)
        if match is None or match[3].strip() != name:
            continue
        start, last = int(match[1], 16), int(match[2], 16)
        if last > 0:
            ranges.append(MemoryRange(start=start, last=last))
    return tuple(ranges)


def read_reservation(root: Path = Path("/")) -> Reservation:
    """What is reserved now. Without the sysfs file the sum of the ranges in /proc/iomem counts."""
    ranges = parse_iomem(read_text(root, "/proc/iomem") or "", "Crash kernel")
    size = read_int(root, *SIZE_PATHS)
    if size is None:
        size = sum(range_.size_bytes for range_ in ranges)
    return Reservation(size_bytes=size, ranges=ranges)


def has_cma(root: Path = Path("/")) -> bool | None:
    """Whether the kernel set an area aside for crashkernel=SIZE,cma; None where it does not tell (before v6.19)."""
    text = read_text(root, "/sys/kernel/kexec/crash_cma_ranges")
    return None if text is None else bool(text.strip())


def read_memory_bytes(root: Path = Path("/")) -> int:
    """RAM of the machine in bytes: System RAM of /proc/iomem, else MemTotal (which is a little less). 0 if unknown."""
    total = sum(range_.size_bytes for range_ in parse_iomem(read_text(root, "/proc/iomem") or "", "System RAM"))
    if total:
        return total
    match = re.search(r"^MemTotal:\s*(\d+) kB", read_text(root, "/proc/meminfo") or "", re.MULTILINE)
    return int(match[1]) * 1024 if match else 0
