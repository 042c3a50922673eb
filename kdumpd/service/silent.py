# SPDX-License-Identifier: GPL-2.0-or-later
"""What the kernel keeps silent about: it is read every half minute and compared with the last time.

Neither the load state of kexec nor a sysctl raises an event of its own. What there is besides this reading is in
`watchlist.py`: inotify sees writes to a sysctl made through the mount of /proc that the service itself sees, and it
sees a run of kexec(8) come to its end. But others may make the system call themselves, and memory pressure or another
mount of /proc may hide a write, so that this stays the net below. Tracing the system call (audit, bpf) would need
rights that a service of this kind should not have, and slow down every system call of the machine.
"""

from __future__ import annotations

from pathlib import Path

from kdumpd.host.crypt_keys import read_keys
from kdumpd.host.files import read_text
from kdumpd.host.kexec import LOADED_PATHS
from kdumpd.host.reservation import SIZE_PATHS
from kdumpd.host.security import LOCKDOWN_PATH
from kdumpd.host.sysctl import SYSCTL_PATHS

SILENT_PATHS = (*LOADED_PATHS, *SIZE_PATHS, LOCKDOWN_PATH, *SYSCTL_PATHS)


def read_silent(root: Path) -> tuple[str | None, ...]:
    """The texts of all these files, None for those that are absent, and the keys of encrypted volumes. Takes well under
    a millisecond."""
    return (*(read_text(root, path) for path in SILENT_PATHS), read_keys(root))
