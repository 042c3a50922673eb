# SPDX-License-Identifier: GPL-2.0-or-later
"""docs/PERFORMANCE.md, where measured tables stand between `<!-- NAME: begin -->` and `<!-- NAME: end -->`."""

from __future__ import annotations

from pathlib import Path

PAGE = Path(__file__).resolve().parents[2] / "docs" / "PERFORMANCE.md"


def write(name: str, text: str) -> None:
    """Puts `text`, whole lines, in the place of what stands there."""
    begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->\n"
    head, rest = PAGE.read_text().split(begin)
    PAGE.write_text(head + begin + text + rest[rest.index(end) :])
