# SPDX-License-Identifier: GPL-2.0-or-later
"""kdump.conf, read once and the same way by all three programs.

What has to start fast, such as the loader, takes one name from one module: the others are imported when they are used.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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
_PLACES = {
    "capture": ("CaptureConfig",),
    "model": ("Action", "Compression", "Config", "DumpSettings", "Problem"),
    "parse": ("CONFIG_FILE", "DROPIN_DIR", "parse_config", "read_config"),
    "targets": ("LocalTarget", "NfsTarget", "RawTarget", "SshTarget", "Target"),
}


def __getattr__(name: str) -> Any:
    import importlib

    for module, names in _PLACES.items():
        if name in names:
            return getattr(importlib.import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
