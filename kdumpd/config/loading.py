# SPDX-License-Identifier: GPL-2.0-or-later
"""The directives of kdump.conf that say how the capture kernel is loaded and what it is told: text to fields of Config.

Knows what a kernel command line may look like; what the capture kernel is told by default is `host/cmdline.py`.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from kdumpd.config.kexec_syscall import KexecSyscall

_LONGEST = 1024  # the shortest limit of any architecture is 896 bytes (s390), most take 2048
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:-]{0,63}")
# The kernel writes the first itself; the second would take memory out of the little there is.
_NEVER = frozenset({"elfcorehdr", "crashkernel"})
_CPUS_LIMIT = 8192


def _line(value: str) -> str:
    if len(value) > _LONGEST:
        raise ValueError(f"a command line of {len(value)} characters; at most {_LONGEST} are taken")
    if not value.isascii() or not value.isprintable():
        raise ValueError("a kernel command line takes plain ASCII characters")
    if value.count('"') % 2:
        raise ValueError("a double quote that does not end would swallow what follows it")
    if "--" in value.split():
        raise ValueError("'--' would end the kernel's own parameters")
    for word in value.split():
        if word.strip('"').partition("=")[0] in _NEVER:
            raise ValueError(f"'{word}' cannot be given to a capture kernel")
    return value


def _names(value: str) -> tuple[str, ...]:
    names = tuple(value.split())
    for name in names:
        if not _NAME.fullmatch(name):
            raise ValueError(f"'{name}' is not the name of a kernel parameter; give names without values")
    return names


def _syscall(value: str) -> KexecSyscall:
    try:
        return KexecSyscall(value)
    except ValueError:
        raise ValueError(f"'{value}' is no way to load; use one of {', '.join(KexecSyscall)}") from None


def _cpus(value: str) -> int | None:
    if value == "auto":
        return None
    if not re.fullmatch(r"[0-9]{1,5}", value) or not 1 <= int(value) <= _CPUS_LIMIT:
        raise ValueError(f"'{value}' is not a number of processors; use auto or a number from 1 on")
    return int(value)


# Directive, which is also the field of Config: its reader. A ValueError's text is the complaint.
READERS: dict[str, Callable[[str], object]] = {
    "kexec_syscall": _syscall,
    "commandline": _line,
    "commandline_remove": _names,
    "commandline_append": _line,
    "nr_cpus": _cpus,
}
