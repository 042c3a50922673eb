# SPDX-License-Identifier: GPL-2.0-or-later
"""Which folders the service works in. Tests put others in the place of the machine's own."""

from __future__ import annotations

import dataclasses
from pathlib import Path


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """`root` is what facts are read below; `state_dir` holds images and outlives a boot, `run_dir` does not."""

    root: Path = Path("/")
    state_dir: Path = Path("/var/lib/kdumpd")
    run_dir: Path = Path("/run/kdumpd")

    @classmethod
    def below(cls, root: Path) -> Places:
        """The usual folders, below another root."""
        return cls(root=root, state_dir=root / "var/lib/kdumpd", run_dir=root / "run/kdumpd")

    @property
    def kept_dir(self) -> Path:
        """Kernel and image that are loaded, kept so that newer ones do not replace them; see `kept.py`."""
        return self.state_dir / "loaded"
