# SPDX-License-Identifier: GPL-2.0-or-later
"""/proc/kcore: where the running kernel maps its memory, and its VMCOREINFO (linux: fs/proc/kcore.c).

Only the head of the file is read, never memory. Physical addresses stand in it since v4.11 (464920104bf7), VMCOREINFO
since v4.19 (23c85094fe18).
"""

from __future__ import annotations

import dataclasses
import os
import re
import struct
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from kdumpd.errors import UnsupportedError, os_reason
from kdumpd.host.reservation import MemoryRange

_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_PROGRAM_HEADER = struct.Struct("<IIQQQQQQ")
_NOTE = struct.Struct("<III")
_PT_LOAD, _PT_NOTE = 1, 4
_ELF64_LITTLE = b"\x7fELF\x02\x01"
_NOWHERE = (1 << 64) - 1  # vmalloc and the like
_MOST_NOTES = 1 << 20


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class KernelMap:
    """`direct_offset` is virtual minus physical address of the direct map, modulo 2**64. `vmcoreinfo` is its text,
    empty for a kernel that shows none.
    """

    direct_offset: int
    vmcoreinfo: str

    def number(self, name: str) -> int | None:
        """NUMBER(name) of VMCOREINFO, decimal or hexadecimal."""
        found = re.search(rf"^NUMBER\({re.escape(name)}\)=(-?(?:0x)?[0-9a-f]+)$", self.vmcoreinfo, re.MULTILINE)
        return None if found is None else int(found[1], 0)


def read_kernel_map(ram: Sequence[MemoryRange], root: Path = Path("/")) -> KernelMap:
    """Reads the file's head; `ram` is "System RAM" of /proc/iomem. Raises UnsupportedError when it does not tell."""
    path = root / "proc/kcore"
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise _unknown(f"{path} cannot be read: {os_reason(error)}") from error
    try:
        return _parse(fd, ram)
    except OSError as error:
        raise _unknown(f"{path} cannot be read: {os_reason(error)}") from error
    except (struct.error, ValueError) as error:
        raise _unknown(f"{path} makes no sense: {error}") from error
    finally:
        os.close(fd)


def _unknown(why: str) -> UnsupportedError:
    return UnsupportedError(
        f"where this kernel maps its memory is not known: {why}", hint="use a kernel with CONFIG_PROC_KCORE"
    )


def _parse(fd: int, ram: Sequence[MemoryRange]) -> KernelMap:
    head = _HEADER.unpack(os.pread(fd, _HEADER.size, 0))
    if not head[0].startswith(_ELF64_LITTLE) or head[9] != _PROGRAM_HEADER.size:
        raise ValueError("it is no 64-bit ELF file")
    table = os.pread(fd, head[9] * head[10], head[5])
    sizes: Counter[int] = Counter()
    info = ""
    for kind, _, offset, vaddr, paddr, file_bytes, memory_bytes, _ in _PROGRAM_HEADER.iter_unpack(table):
        if kind == _PT_NOTE and file_bytes <= _MOST_NOTES:
            info = _vmcoreinfo(os.pread(fd, file_bytes, offset))
        elif kind == _PT_LOAD and paddr != _NOWHERE and any(span.start <= paddr <= span.last for span in ram):
            sizes[(vaddr - paddr) % (1 << 64)] += memory_bytes
    if not sizes:
        raise ValueError("it gives no physical addresses")
    # The kernel's text is mapped a second time elsewhere; the direct map is the larger one.
    return KernelMap(direct_offset=sizes.most_common(1)[0][0], vmcoreinfo=info)


def _vmcoreinfo(notes: bytes) -> str:
    at = 0
    while at + _NOTE.size <= len(notes):
        name_bytes, text_bytes, _ = _NOTE.unpack_from(notes, at)
        at += _NOTE.size
        name = notes[at : at + name_bytes].rstrip(b"\0")
        at += -(-name_bytes // 4) * 4
        if name == b"VMCOREINFO":
            return notes[at : at + text_bytes].decode(errors="replace")
        at += -(-text_bytes // 4) * 4
    return ""
