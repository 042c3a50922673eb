# SPDX-License-Identifier: GPL-2.0-or-later
"""What makedumpfile makes of a vmcore, also of one that it does not understand as it stands."""

from __future__ import annotations

import re
import subprocess
import tempfile
from pathlib import Path

from . import tools
from .aptroot import LabError, run
from .vmcore import Vmcore

# The newest one, 1.7.8, knows no arm64 with pages of 4 KiB and 52 bits of virtual addresses.
UNREADABLE = "VA Bits 52 not supported"
_NOTES_WITHIN = 64 << 10


def filtered(core: Vmcore, out: Path, *options: str) -> None:
    """Writes makedumpfile's dump of `core` to `out`. Raises LabError with its last words when it makes none."""
    with tempfile.TemporaryDirectory(dir=out.parent) as scratch:
        path = core.path
        if core.architecture == "arm64" and core.levels == 4:
            path = _as_built_for_48_bits(path, Path(scratch) / "vmcore")
        argv = [*tools.program("makedumpfile", architecture=core.architecture), *options, str(path), str(out)]
        run(argv, timeout=300)


def _as_built_for_48_bits(core: Path, copy: Path) -> Path:
    """A copy whose VMCOREINFO says the same of this memory as that of a kernel built for 48 bits would.

    Debian's kernel is built for 52 bits; on a cpu of 48 it keeps the linear map's arithmetic for 52 and moves
    PHYS_OFFSET by the difference (linux: arch/arm64/mm/init.c, arm64_memblock_init).
    """
    subprocess.run(["cp", "--sparse=always", "--reflink=auto", str(core), str(copy)], check=True)
    with copy.open("r+b") as file:
        head = bytearray(file.read(_NOTES_WITHIN))
        offset = re.search(rb"NUMBER\(PHYS_OFFSET\)=0x([0-9a-f]{16})\n", head)
        bits = head.find(b"NUMBER(VA_BITS)=52\n")
        if offset is None or bits < 0:
            raise LabError(f"{core}: this kernel was not built for 52 bits")
        head[bits : bits + 18] = b"NUMBER(VA_BITS)=48"
        moved = int(offset[1], 16) + (1 << 52) - (1 << 48) & (1 << 64) - 1
        head[offset.start(1) : offset.end(1)] = b"%016x" % moved
        file.seek(0)
        file.write(head)
    return copy
