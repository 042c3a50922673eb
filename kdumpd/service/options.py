# SPDX-License-Identifier: GPL-2.0-or-later
"""What the daemon may be told when it is started; systemd tells it nothing."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from kdumpd.service.places import Places


class Options(NamedTuple):
    """See kdumpd(8). `interval` is seconds; None stands for the usual folder and the system bus."""

    root: Path = Path("/")
    state_dir: Path | None = None
    run_dir: Path | None = None
    bus_address: str | None = None
    interval: float = 30.0

    @property
    def places(self) -> Places:
        """The folders that these options mean."""
        usual = Places.below(self.root)
        return Places(
            root=self.root, state_dir=self.state_dir or usual.state_dir, run_dir=self.run_dir or usual.run_dir
        )
