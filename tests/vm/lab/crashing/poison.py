# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs inside a small guest: has one page of a child's memory declared broken, as a machine check would."""

from __future__ import annotations

import mmap
import os

MADV_HWPOISON = 100  # include/uapi/asm-generic/mman-common.h


def main() -> None:
    """The child may be killed for it; the page stays marked."""
    child = os.fork()
    if child == 0:
        area = mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        area[:] = b"poison! " * (mmap.PAGESIZE // 8)
        try:
            area.madvise(MADV_HWPOISON)
        except OSError as error:
            print(f"crash guest: no page is poisoned, {error}", flush=True)  # kernels without CONFIG_MEMORY_FAILURE
        os._exit(0)
    os.waitpid(child, 0)


if __name__ == "__main__":
    main()
