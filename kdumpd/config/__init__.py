# SPDX-License-Identifier: GPL-2.0-or-later
"""kdump.conf, read once and the same way by all three programs."""

from kdumpd.config.capture import CaptureConfig
from kdumpd.config.model import Action, Compression, Config, DumpSettings, Problem
from kdumpd.config.parse import CONFIG_FILE, DROPIN_DIR, parse_config, read_config
from kdumpd.config.targets import LocalTarget, NfsTarget, RawTarget, SshTarget, Target

__all__ = [
    "CONFIG_FILE",
    "DROPIN_DIR",
    "Action",
    "CaptureConfig",
    "Compression",
    "Config",
    "DumpSettings",
    "LocalTarget",
    "NfsTarget",
    "Problem",
    "RawTarget",
    "SshTarget",
    "Target",
    "parse_config",
    "read_config",
]
