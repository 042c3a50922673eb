# SPDX-License-Identifier: GPL-2.0-or-later
"""Builds and checks the capture initramfs.

The service only asks whether an image is fresh, and stays resident on every machine: what builds and checks (and
imports numpy) is imported when it is used.
"""

from typing import TYPE_CHECKING, Any

from kdumpd.image.capture import capture_config
from kdumpd.image.freshness import freshness
from kdumpd.image.record import ImageRecord, read_record

if TYPE_CHECKING:
    from kdumpd.image.builder import BuildRequest, build
    from kdumpd.image.verify import check

__all__ = ["BuildRequest", "ImageRecord", "build", "capture_config", "check", "freshness", "read_record"]


def __getattr__(name: str) -> Any:
    if name in ("BuildRequest", "build"):
        from kdumpd.image import builder

        return getattr(builder, name)
    if name == "check":
        from kdumpd.image.verify import check

        return check
    raise AttributeError(name)
