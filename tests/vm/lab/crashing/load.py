# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs inside a small guest: the workload, also on kernels without transparent huge pages (PREEMPT_RT has none)."""

from __future__ import annotations

import contextlib
import mmap

import workload  # copied beside this file


class Area(mmap.mmap):
    """Memory whose wishes the kernel need not grant."""

    def madvise(self, *wish: int) -> None:
        """See madvise(2)."""
        with contextlib.suppress(OSError):
            super().madvise(*wish)


if __name__ == "__main__":
    mmap.mmap = Area
    workload.main()
