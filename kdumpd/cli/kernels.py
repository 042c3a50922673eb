# SPDX-License-Identifier: GPL-2.0-or-later
"""kdumpctl kernel-hook: called by package managers when a kernel came or went.

Does nothing slow: leaves a note and nudges the service, if there is one. In a chroot the bus may be the host's, whose
service has nothing to do with the kernels in here; so only the note is left.
"""

from __future__ import annotations

import os
from argparse import Namespace
from pathlib import Path

from kdumpd.cli import output
from kdumpd.errors import ServiceUnreachableError
from kdumpd.service import pending
from kdumpd.service.places import Places


def hook(options: Namespace) -> int:
    """Leaves the note; whether somebody reads it now is no failure. Raises KdumpError when it cannot be left."""
    event = pending.Event(options.action)
    pending.leave(Places.below(options.root).state_dir, options.release, event)
    told = options.root == Path("/") and not in_chroot() and _tell()
    if options.json != "off":
        facts = {"release": options.release, "event": event.value, "service": told}
        output.print_json(facts, options.json)
    return 0


def _tell() -> bool:
    """True when the service knows; one that does not run is not started for this."""
    try:
        from kdumpd.cli import bus

        bus.nudge("KernelsChanged")
    except ServiceUnreachableError:
        return False
    return True


def in_chroot(root: Path = Path("/")) -> bool:
    """As systemd-detect-virt --chroot: is our root another one than that of PID 1? True where it cannot be told.

    SYSTEMD_OFFLINE is what image builders set.
    """
    if os.environ.get("SYSTEMD_OFFLINE", "0") not in ("", "0"):
        return True
    try:
        return not os.path.samestat(root.stat(), (root / "proc/1/root").stat())
    except OSError:
        return True
