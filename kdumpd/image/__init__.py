# SPDX-License-Identifier: GPL-2.0-or-later
"""Builds and checks the capture initramfs.

Each part is imported when it is asked for: the service, which stays resident on every machine, only asks whether an
image is fresh, and the builder has its first process started before it imports the rest.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kdumpd.image.builder import BuildRequest, build
    from kdumpd.image.capture import capture_config
    from kdumpd.image.record import ImageRecord, read_record
    from kdumpd.image.verify import check

__all__ = ["BuildRequest", "ImageRecord", "build", "capture_config", "check", "read_record"]

_PLACES = {
    "BuildRequest": "builder",
    "ImageRecord": "record",
    "build": "builder",
    "capture_config": "capture",
    "check": "verify",
    "read_record": "record",
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_PLACES[name]}"), name)
