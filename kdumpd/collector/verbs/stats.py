# SPDX-License-Identifier: GPL-2.0-or-later
"""Pages counted by class, for --show-stats, --dry-run and --mem-usage."""

from __future__ import annotations

from collections.abc import Mapping

_NAMES = {
    "total": "pages that the machine has",
    "free": "free",
    "unaccepted": "free, never accepted by the kernel",
    "cache": "cache",
    "cache_private": "cache with private data",
    "user": "user data",
    "hwpoison": "broken (hwpoison)",
    "offline": "offline",
    "kept": "kept",
    "written": "written",
    "zero": "kept, but zero",
    "unreadable": "could not be read",
}


def table(counts: Mapping[str, int]) -> str:
    """A line for each count: pages, share of all, name."""
    total = max(1, counts.get("total", 0))
    names = [*(name for name in _NAMES if name in counts), *(name for name in counts if name not in _NAMES)]
    lines = [f"{counts[name]:>12}  {100 * counts[name] / total:5.1f} %  {_NAMES.get(name, name)}" for name in names]
    return "\n".join(lines)
