# SPDX-License-Identifier: GPL-2.0-or-later
"""What the kernel forbids: kexec switched off, lockdown, Secure Boot. Facts only, no judgement."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from kdumpd.host import sysctl
from kdumpd.host.files import below, read_int, read_text

LOCKDOWN_PATH = "/sys/kernel/security/lockdown"
_GLOBAL_VARIABLE = "8be4df61-93ca-11d2-aa0d-00e098032b8c"  # EFI_GLOBAL_VARIABLE, UEFI specification 3.3


class Security(NamedTuple):
    """`lockdown` is none, integrity or confidentiality, None when the kernel has no lockdown.

    `load_limit` is the number of capture kernels that may still be loaded (kexec_load_limit_panic), None for no limit.
    """

    load_disabled: bool = False
    load_limit: int | None = None
    lockdown: str | None = None
    secure_boot: bool | None = None

    @property
    def may_load(self) -> bool:
        """False when no load can succeed before the next boot."""
        return not self.load_disabled and self.load_limit != 0


def parse_lockdown(text: str) -> str | None:
    """The word in brackets of /sys/kernel/security/lockdown."""
    match = re.search(r"\[(\w+)\]", text)
    return match[1] if match else None


def read_security(root: Path = Path("/")) -> Security:
    """Reads the four facts; an absent file means that the kernel does not know the restriction."""
    limit = read_int(root, sysctl.LOAD_LIMIT)
    return Security(
        load_disabled=read_int(root, sysctl.LOAD_DISABLED) == 1,
        load_limit=None if limit is None or limit < 0 else limit,
        lockdown=parse_lockdown(read_text(root, LOCKDOWN_PATH) or ""),
        secure_boot=_read_secure_boot(root),
    )


def parse_ima_policy(text: str) -> bool:
    """True when a rule of the policy wants the initrd of a kexec signed (Documentation/ABI/testing/ima_policy)."""
    rules = (line.split() for line in text.splitlines())
    return any(rule and rule[0] == "appraise" and "func=KEXEC_INITRAMFS_CHECK" in rule for rule in rules)


def read_image_appraised(root: Path = Path("/")) -> bool:
    """`parse_ima_policy` of the policy in force; False where the kernel does not show it (CONFIG_IMA_READ_POLICY)."""
    return parse_ima_policy(read_text(root, "/sys/kernel/security/ima/policy") or "")


def _read_secure_boot(root: Path) -> bool | None:
    try:
        value = below(root, f"/sys/firmware/efi/efivars/SecureBoot-{_GLOBAL_VARIABLE}").read_bytes()
    except OSError:
        return None
    return len(value) == 5 and value[4] == 1  # four bytes of attributes, then the value
