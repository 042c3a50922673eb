# SPDX-License-Identifier: GPL-2.0-or-later
"""Tells the other nodes of a cluster that this machine is dumping, so that they do not fence it (fence_kdump(8)).

A process of its own, which the supervisor starts before the collector: it sets the network up and becomes
fence_kdump_send(8), which sends its messages until the machine reboots, whatever becomes of the collector.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from kdumpd.config.capture import CaptureConfig
from kdumpd.errors import KdumpError, os_reason
from kdumpd.targets.network import bring_up

SETTINGS = Path("/etc/kdumpd/capture.json")
_PAUSE_SEC = 5.0


def announce(settings: Path = SETTINGS) -> int:
    """Becomes fence_kdump_send, as soon as there is a network. 1 when that cannot be."""
    try:
        capture = CaptureConfig.from_json(settings.read_text(encoding="utf-8"), str(settings))
        fence = capture.fence
        if fence is None or capture.network is None:
            return 1
        while True:
            try:
                bring_up(capture.network, lambda: None, capture.deadlines.network_sec)
                break
            except KdumpError as error:
                # A link that comes late is better than none.
                print(f"[kdumpd] the cluster is not told yet: {error}", flush=True)
                time.sleep(_PAUSE_SEC)
        print(f"[kdumpd] telling the cluster: {' '.join(fence.addresses)}", flush=True)
        os.execv(fence.program, [fence.program, *fence.args, *fence.addresses])
    except KdumpError as error:
        reason = str(error)
    except OSError as error:
        reason = f"{error.filename or 'fence_kdump_send'}: {os_reason(error)}"
    print(f"[kdumpd] the cluster is not told: {reason}", flush=True)
    return 1
