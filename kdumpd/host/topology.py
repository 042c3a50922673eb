# SPDX-License-Identifier: GPL-2.0-or-later
"""Processors and memory of the machine, as far as a loaded capture kernel has to know them.

The ELF header of the crashed memory is made when the capture kernel is loaded: memory that was plugged in afterwards
would be missing in the dump. Kernels with CONFIG_CRASH_HOTPLUG mend that header themselves, and say so in
`crash_hotplug`, for processors and memory each (Documentation/ABI/testing/sysfs-devices-memory).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from kdumpd.host.files import read_int, read_text

_RAM = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) : System RAM\b", re.MULTILINE)


class Topology(NamedTuple):
    """`cpus` as in /sys/devices/system/cpu/present, `memory` as in /proc/iomem; empty when it cannot be known.

    `cpus_handled` and `memory_handled` tell whether the kernel itself keeps the loaded header right.
    """

    cpus: str = ""
    memory: str = ""
    cpus_handled: bool = False
    memory_handled: bool = False


def parse_memory(iomem: str) -> str:
    """The ranges of RAM in the text of /proc/iomem, neighbours joined; empty when the kernel hides addresses."""
    spans: list[list[int]] = []
    for match in _RAM.finditer(iomem):
        start, last = int(match[1], 16), int(match[2], 16)
        if last == 0:
            continue
        if spans and start == spans[-1][1] + 1:
            spans[-1][1] = last
        else:
            spans.append([start, last])
    return ",".join(f"{start:x}-{last:x}" for start, last in spans)


def read_topology(root: Path = Path("/")) -> Topology:
    """What is there now."""
    system = "/sys/devices/system/"
    return Topology(
        cpus=(read_text(root, system + "cpu/present") or "").strip(),
        memory=parse_memory(read_text(root, "/proc/iomem") or ""),
        cpus_handled=read_int(root, system + "cpu/crash_hotplug") == 1,
        memory_handled=read_int(root, system + "memory/crash_hotplug") == 1,
    )
