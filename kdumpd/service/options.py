# SPDX-License-Identifier: GPL-2.0-or-later
"""What the daemon may be told when it is started; systemd tells it nothing."""

from __future__ import annotations

import dataclasses
from pathlib import Path


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """See kdumpd(8). `interval` is seconds; None stands for the usual folder and the system bus."""

    root: Path = Path("/")
    state_dir: Path | None = None
    run_dir: Path | None = None
    bus_address: str | None = None
    interval: float = 30.0
