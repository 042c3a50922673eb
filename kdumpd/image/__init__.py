# SPDX-License-Identifier: GPL-2.0-or-later
"""Builds and checks the capture initramfs."""

from kdumpd.image.builder import BuildRequest, build
from kdumpd.image.capture import capture_config
from kdumpd.image.freshness import freshness
from kdumpd.image.record import ImageRecord, read_record
from kdumpd.image.verify import check

__all__ = ["BuildRequest", "ImageRecord", "build", "capture_config", "check", "freshness", "read_record"]
