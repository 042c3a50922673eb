# SPDX-License-Identifier: GPL-2.0-or-later
"""What a process of ours does without to stay small: the daemon always, the collector where memory is scarce."""

from __future__ import annotations

import ctypes
import importlib.util
import sys


def spare_openssl() -> None:
    """Lets hashlib use Python's own SHA-256 (before anything imports it): 3.7 MB less of resident memory, and 270
    instead of 1700 MiB a second.

    Does nothing where Python was built without it (Fedora), or where hashlib is there already.
    """
    own = any(importlib.util.find_spec(name) is not None for name in ("_sha2", "_sha256"))
    if own and "hashlib" not in sys.modules:
        sys.modules["_hashlib"] = None  # type: ignore[assignment]  # this is how an import is told to fail


def set_malloc(option: int, value: int) -> None:
    """mallopt(3) with an option of malloc.h; nothing with a C library that has none."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(option, value)
