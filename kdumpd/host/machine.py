# SPDX-License-Identifier: GPL-2.0-or-later
"""Who the running machine is: architecture, kernel release, this boot. Refuses to know about crash dumps."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import NamedTuple

from kdumpd.host.files import read_text


class Machine(NamedTuple):
    """`arch` as uname -m prints it; `boot_id` is new at each boot."""

    arch: str
    release: str
    boot_id: str


def read_machine(root: Path = Path("/")) -> Machine:
    """From /proc/sys/kernel; the running system answers for what the tree below `root` does not hold."""
    uname = os.uname()
    return Machine(
        # /proc/sys/kernel/arch exists since v6.1
        arch=(read_text(root, "/proc/sys/kernel/arch") or uname.machine).strip(),
        release=(read_text(root, "/proc/sys/kernel/osrelease") or uname.release).strip(),
        boot_id=(read_text(root, "/proc/sys/kernel/random/boot_id") or "").strip(),
    )


def read_present_cpus(root: Path = Path("/")) -> int:
    """How many processors the machine has, online or not; 1 when it does not tell."""
    count = 0
    for span in (read_text(root, "/sys/devices/system/cpu/present") or "").strip().split(","):
        first, _, last = span.partition("-")
        if first.isdigit():
            count += int(last) - int(first) + 1 if last.isdigit() else 1
    return max(1, count)


def now_usec() -> int:
    """CLOCK_REALTIME in microseconds."""
    return time.time_ns() // 1000
