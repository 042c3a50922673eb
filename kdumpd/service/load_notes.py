# SPDX-License-Identifier: GPL-2.0-or-later
"""What is noted in the run folder before and after a load, so that a service that died in between knows that it does
not know what the kernel holds. Imports next to nothing: the first load comes before most of the service is imported.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdumpd.service.json_file import write_atomic
from kdumpd.service.places import LOADED_NAME, LOADING_NAME


class LoadNotes:
    """`loading.json` is written before the call, `loaded.json` renamed into place after the kernel took the image."""

    def __init__(self, folder: Path) -> None:
        self.loaded = folder / LOADED_NAME
        self.loading = folder / LOADING_NAME

    def begin(self, record: Mapping[str, Any]) -> None:
        """`record` is about to be loaded. Raises OSError."""
        write_atomic(self.loading, _text(record))

    def commit(self, record: Mapping[str, Any]) -> None:
        """The kernel holds `record`. Raises OSError."""
        write_atomic(self.loaded, _text(record))
        self.abandon()

    def abandon(self) -> None:
        """The load failed and the kernel still holds what it held. Raises OSError."""
        self.loading.unlink(missing_ok=True)


def _text(record: Mapping[str, Any]) -> str:
    return json.dumps(record, indent=1) + "\n"
