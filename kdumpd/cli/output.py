# SPDX-License-Identifier: GPL-2.0-or-later
"""How kdumpctl writes: JSON styles, sizes, times, marks. Knows nothing of crash dumps."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from typing import Any

from kdumpd.crashes.text import printable

_UNITS = "KMGTPE"


def print_json(value: Any, style: str) -> None:
    """`short` is one line, `pretty` many."""
    import json  # here and below: most of what is said is one line

    print(json.dumps(value, indent=2 if style == "pretty" else None))


def print_pairs(pairs: Sequence[tuple[str, str]], *, wrapped: bool = False) -> None:
    """`key: value` lines, aligned at the colon; `wrapped` values go on below themselves."""
    columns = max(len(key) for key, _ in pairs)
    for key, value in pairs:
        print(f"{key:>{columns}}: {wrap(value, columns + 2) if wrapped else printable(value)}")


def table(header: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[str] = ()) -> list[str]:
    """Aligned columns; those named in `right` to the right; the last column takes what is left and is clipped."""
    widths = [max(len(row[index]) for row in [header, *rows]) for index in range(len(header) - 1)]
    lines = []
    for row in [header, *rows]:
        cells = [
            f"{cell:>{columns}}" if header[index] in right else f"{cell:<{columns}}"
            for index, (cell, columns) in enumerate(zip(row, widths, strict=False))
        ]
        left = " ".join(cells)
        lines.append(f"{left} {clip(row[-1], max(8, width() - len(left) - 1))}".rstrip())
    return lines


def wrap(text: str, indent: int, *, begins: int | None = None) -> str:
    """Wrapped to the terminal, for a line in which it begins in column `begins`; long words (paths) stay whole."""
    import textwrap

    return textwrap.fill(
        printable(text),
        width=max(40, width()),
        initial_indent=" " * (indent if begins is None else begins),
        subsequent_indent=" " * indent,
        break_long_words=False,
        break_on_hyphens=False,
    ).lstrip()


def size(size_bytes: int | None) -> str:
    """28.7M; - for what is not known."""
    if size_bytes is None:
        return "-"
    value = float(size_bytes)
    unit = ""
    for unit in ("", *_UNITS):
        if value < 1024 or unit == _UNITS[-1]:
            break
        value /= 1024
    return f"{value:.1f}{unit}" if unit else f"{size_bytes}B"


def moment(usec: int) -> str:
    """Local time to the minute; a clock that went wrong must not end in an error."""
    try:
        then = time.localtime(usec / 1e6)
        return time.strftime("%Y-%m-%d %H:%M", then) if 1900 <= then.tm_year <= 9999 else "-"
    except (ValueError, OverflowError, OSError):
        return "-"


def duration(usec: int | None) -> str:
    """8s, 2m05s, 1h02m."""
    if usec is None:
        return "-"
    seconds = usec // 1_000_000
    if seconds < 60:
        return f"{seconds}s"
    minutes, seconds = divmod(seconds, 60)
    if minutes < 60:
        return f"{minutes}m{seconds:02}s"
    return f"{minutes // 60}h{minutes % 60:02}m"


def width() -> int:
    """Columns of the terminal; 80 where there is none."""
    if not sys.stdout.isatty():
        return 80
    import shutil

    return shutil.get_terminal_size((80, 24)).columns


def clip(text: str, columns: int) -> str:
    """`text` in at most `columns`; what is cut off is marked."""
    if len(text) <= columns:
        return text
    mark = "…" if _utf8() else "~"
    return text[: max(0, columns - 1)] + mark


def marks() -> dict[str, str]:
    """Signs for good, bad and not known, in colour on a terminal that wants it."""
    signs = {"good": "✓", "bad": "✗", "open": "·", "on": "●", "off": "○", "then": "→"}
    if not _utf8():
        signs = {"good": "+", "bad": "!", "open": "-", "on": "*", "off": "o", "then": "->"}
    if _colour():
        colours = {"good": 32, "on": 32, "bad": 31, "off": 31}
        signs.update({name: f"\x1b[{colours[name]}m{signs[name]}\x1b[0m" for name in colours})
    return signs


def _utf8() -> bool:
    encoding = getattr(sys.stdout, "encoding", None)
    if not encoding:
        import locale

        encoding = locale.getpreferredencoding(False)
    return encoding.lower().replace("-", "") == "utf8"


def _colour() -> bool:
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM", "dumb") != "dumb"
