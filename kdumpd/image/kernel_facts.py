# SPDX-License-Identifier: GPL-2.0-or-later
"""What the running kernel says of its own structures, stored in its capture image as /etc/kdumpd/kernel.json.

The collector then need not look for them in the dead kernel's memory. Only values that are the same for each boot
are stored: symbols count from _stext, so that KASLR does not make two images out of one.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

from kdumpd.errors import BuildError, VmcoreError

if TYPE_CHECKING:
    from kdumpd.vmcore.kernel_facts import KernelFacts

PATH = "etc/kdumpd/kernel.json"  # vmcore.kernel_facts.STORED, without importing what needs numpy
_NT_GNU_BUILD_ID = 3
_BLOCK_BYTES = 1 << 18


def running_kernel_facts(release: str, root: Path = Path("/")) -> KernelFacts | None:
    """Facts of kernel `release`; None when another one runs or when it has no type information.

    `root` is where /proc and /sys are looked for. Raises BuildError where numpy does not load.
    """
    try:
        if (root / "proc/sys/kernel/osrelease").read_text().strip() != release:
            return None
    except (OSError, UnicodeDecodeError):
        return None
    try:
        from kdumpd.vmcore.btf import Btf
        from kdumpd.vmcore.kernel_facts import gather
    except ImportError as error:
        raise BuildError(
            f"the running kernel cannot be looked at: Python module {error.name} does not load: {error}",
            hint="install python3-numpy again",
        ) from error
    try:
        btf = Btf((root / "sys/kernel/btf/vmlinux").read_bytes())
    except (OSError, UnicodeDecodeError, VmcoreError):
        return None  # CONFIG_DEBUG_INFO_BTF is off: the collector does with what VMCOREINFO says
    return gather(
        release=release,
        build_id=_vmcoreinfo_build_id(root) or _notes_build_id(root),
        btf=btf,
        symbols=_symbols(root),
        source="the running kernel",
    )


def _vmcoreinfo_build_id(root: Path) -> str | None:
    """As VMCOREINFO has it, which the dead kernel will be asked for: some stable releases have garbage there."""
    from kdumpd.vmcore.elfcore import ElfCore
    from kdumpd.vmcore.vmcoreinfo import parse_vmcoreinfo

    try:
        with ElfCore(root / "proc/kcore") as core:
            note = core.vmcoreinfo_note()
    except VmcoreError:
        return None  # there is no /proc/kcore, or lockdown(7) forbids it
    return None if note is None else parse_vmcoreinfo(note.description).texts.get("BUILD-ID")


def _notes_build_id(root: Path) -> str | None:
    from kdumpd.vmcore.notes import parse_notes

    with contextlib.suppress(OSError):
        for note in parse_notes((root / "sys/kernel/notes").read_bytes()):
            if note.name == "GNU" and note.kind == _NT_GNU_BUILD_ID:
                return note.description.hex()
    return None


def _symbols(root: Path) -> dict[str, int]:
    """Addresses of the wanted symbols; none when sysctl kernel.kptr_restrict hides them."""
    from kdumpd.vmcore.analyst.wanted import SYMBOLS

    wanted = frozenset(name.encode() for name in SYMBOLS)
    found: dict[str, int] = {}
    with contextlib.suppress(OSError), (root / "proc/kallsyms").open("rb") as lines:
        while block := lines.readlines(_BLOCK_BYTES):
            text = b"".join(block)
            # "address type name", and "[module]" behind the names of modules, which come last.
            end = text.find(b"[")
            words = (text if end < 0 else text[: text.rfind(b"\n", 0, end) + 1]).split()
            if len(words) % 3 or {*map(len, words[1::3])} != {1}:
                # A line of another shape: one at a time, and without it.
                words = [word for line in block if len(parts := line.split()) == 3 for word in parts]
            names = words[2::3]
            if not wanted.isdisjoint(names):
                for address, name in zip(words[::3], names, strict=False):
                    if name in wanted:
                        with contextlib.suppress(ValueError):
                            found.setdefault(name.decode(), int(address, 16))
            if end >= 0:
                break
    return found if found.get("_stext") else {}
