# SPDX-License-Identifier: GPL-2.0-or-later
"""kdump.conf, read once and the same way by all three programs."""

from kdumpd.config.model import Action, CaptureConfig, Compression, Config, DumpSettings, LocalTarget, Problem
from kdumpd.config.parse import CONFIG_FILE, DROPIN_DIR, parse_config, read_config

__all__ = [
    "CONFIG_FILE",
    "DROPIN_DIR",
    "Action",
    "CaptureConfig",
    "Compression",
    "Config",
    "DumpSettings",
    "LocalTarget",
    "Problem",
    "parse_config",
    "read_config",
]
