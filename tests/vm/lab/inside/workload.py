# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs inside a test guest: fills its memory with pages of every kind a dump filter tells apart.

Anonymous memory (random, zero, repeating), hugetlb pages, transparent huge pages, a tmpfs file, and page
cache from reading files. Writes its own pid to the file named as the argument when all is in place, then
stays alive, so that the crash finds it there.
"""

from __future__ import annotations

import mmap
import os
import signal
import sys
from pathlib import Path

MIB = 1 << 20
MAP_HUGETLB = 0x40000  # include/uapi/asm-generic/mman-common.h
MADV_HUGEPAGE = 14
HUGE_PAGES = 8


def anonymous() -> list[mmap.mmap]:
    """Random, zero and repeating pages of this process."""
    kept = []
    for content in (os.urandom(24 * MIB), bytes(24 * MIB), b"kdumpd! " * (16 * MIB // 8)):
        area = mmap.mmap(-1, len(content), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        area[:] = content
        kept.append(area)
    huge = mmap.mmap(-1, 16 * MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    huge.madvise(MADV_HUGEPAGE)
    huge[:] = os.urandom(MIB) * 16
    return [*kept, huge]


def hugetlb() -> mmap.mmap:
    """All reserved 2 MiB pages, mapped; every second one stays zero."""
    size = HUGE_PAGES * 2 * MIB
    area = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_HUGETLB)
    for start in range(0, size, 4 * MIB):
        area[start : start + 2 * MIB] = os.urandom(2 * MIB)
        area[start + 2 * MIB] = 0
    return area


def main() -> None:
    """Fills memory, says so, waits for the end."""
    Path("/proc/self/comm").write_text("workload")
    Path("/proc/sys/vm/nr_hugepages").write_text(str(HUGE_PAGES))
    kept = [*anonymous(), hugetlb()]
    Path("/dev/shm/kdumpd-workload").write_bytes(os.urandom(12 * MIB))
    Path("/var/tmp/kdumpd-workload").write_bytes(os.urandom(12 * MIB))
    read = 0
    for path in Path("/usr/lib/python3").rglob("*"):
        if path.is_file() and read < 64 * MIB:
            read += len(path.read_bytes())
    Path(sys.argv[1]).write_text(f"{os.getpid()}\n")
    signal.pause()
    del kept


if __name__ == "__main__":
    main()
