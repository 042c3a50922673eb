# SPDX-License-Identifier: GPL-2.0-or-later
"""Which folders the service works in. Tests put others in the place of the machine's own."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

# In the folder of this boot; see records.py.
LOADED_NAME = "loaded.json"
LOADING_NAME = "loading.json"
HELD_NAME = "held.json"


class Places(NamedTuple):
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
