# SPDX-License-Identifier: GPL-2.0-or-later
"""What the kernel forbids: kexec switched off, lockdown, Secure Boot. Facts only, no judgement."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

from kdumpd.host.files import below, read_int, read_text

_GLOBAL_VARIABLE = "8be4df61-93ca-11d2-aa0d-00e098032b8c"  # EFI_GLOBAL_VARIABLE, UEFI specification 3.3


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Security:
    """`lockdown` is none, integrity or confidentiality, None when the kernel has no lockdown.

    `load_limit` is the number of capture kernels that may still be loaded (kexec_load_limit_panic), None for no limit.
    """

    load_disabled: bool = False
    load_limit: int | None = None
    lockdown: str | None = None
    secure_boot: bool | None = None


def parse_lockdown(text: str) -> str | None:
    """The word in brackets of /sys/kernel/security/lockdown."""
    match = re.search(r"\[(\w+)\]", text)
    return match[1] if match else None


def read_security(root: Path = Path("/")) -> Security:
    """Reads the four facts; an absent file means that the kernel does not know the restriction."""
    limit = read_int(root, "/proc/sys/kernel/kexec_load_limit_panic")
    return Security(
        load_disabled=read_int(root, "/proc/sys/kernel/kexec_load_disabled") == 1,
        load_limit=None if limit is None or limit < 0 else limit,
        lockdown=parse_lockdown(read_text(root, "/sys/kernel/security/lockdown") or ""),
        secure_boot=_read_secure_boot(root),
    )


def _read_secure_boot(root: Path) -> bool | None:
    try:
        value = below(root, f"/sys/firmware/efi/efivars/SecureBoot-{_GLOBAL_VARIABLE}").read_bytes()
    except OSError:
        return None
    return len(value) == 5 and value[4] == 1  # four bytes of attributes, then the value
