# SPDX-License-Identifier: GPL-2.0-or-later
"""The sysctls that decide what a kernel panics about, and so what leads to a dump.

Source: Documentation/admin-guide/sysctl/kernel.rst. A file that is absent means that the kernel was built without
what it switches. Refuses to judge whether a setting is a good one.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from kdumpd.host.files import read_int

_FOLDER = "/proc/sys/kernel/"
LOAD_DISABLED = _FOLDER + "kexec_load_disabled"
LOAD_LIMIT = _FOLDER + "kexec_load_limit_panic"
_SYSRQ = _FOLDER + "sysrq"
_PANIC = _FOLDER + "panic"
_SYSRQ_DUMP = 0x8  # SYSRQ_ENABLE_DUMP in include/linux/sysrq.h

# What happens -> the sysctl that makes the kernel panic when it happens. A plain panic needs none.
EVENTS = {
    "oops": "panic_on_oops",
    "warning": "panic_on_warn",
    "hung-task": "hung_task_panic",
    "soft-lockup": "softlockup_panic",
    "hard-lockup": "hardlockup_panic",
    "unknown-nmi": "unknown_nmi_panic",
    "memory-error-nmi": "panic_on_unrecovered_nmi",
    "io-nmi": "panic_on_io_nmi",
    "rcu-stall": "panic_on_rcu_stall",
}

SYSCTL_PATHS = (LOAD_DISABLED, LOAD_LIMIT, _SYSRQ, _PANIC, *(_FOLDER + name for name in EVENTS.values()))


class Triggers(NamedTuple):
    """Which events this kernel turns into a panic, by the names in `EVENTS`; those it does not know are left out.

    `sysrq_key` tells whether Alt-SysRq-C on a console crashes the machine (root's /proc/sysrq-trigger always does).
    `reboot_seconds` is kernel.panic: how long a machine without a capture kernel waits before it boots, 0 for ever.
    """

    panics: tuple[tuple[str, bool], ...] = ()
    sysrq_key: bool | None = None
    reboot_seconds: int | None = None

    def panics_on(self, event: str) -> bool | None:
        """Whether `event` leads to a panic; None when the kernel does not know it."""
        return dict(self.panics).get(event)


def read_triggers(root: Path = Path("/")) -> Triggers:
    """The settings of this moment."""
    found = ((event, read_int(root, _FOLDER + name)) for event, name in EVENTS.items())
    sysrq = read_int(root, _SYSRQ)
    return Triggers(
        panics=tuple((event, value != 0) for event, value in found if value is not None),
        # 1 allows everything, larger values are a mask.
        sysrq_key=None if sysrq is None else sysrq == 1 or (sysrq > 1 and bool(sysrq & _SYSRQ_DUMP)),
        reboot_seconds=read_int(root, _PANIC),
    )
