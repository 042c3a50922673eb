# SPDX-License-Identifier: GPL-2.0-or-later
"""Reading small files of /proc and /sys below a root folder. Knows nothing of what stands in them."""

from __future__ import annotations

import os
from pathlib import Path


def below(root: Path, path: str) -> Path:
    """`path` (absolute, as on the machine) below `root`."""
    return root / path.lstrip("/")


def read_text(root: Path, path: str) -> str | None:
    """The text of the file, None when it is absent or may not be read. Bytes that are no UTF-8 are kept visible."""
    try:
        # Dozens of them at each look: this is a third of what pathlib takes.
        descriptor = os.open(f"{root}/{path}", os.O_RDONLY | os.O_CLOEXEC)
    except (OSError, ValueError):
        return None
    try:
        with open(descriptor, "rb", buffering=0) as file:
            return file.read().decode("utf-8", errors="backslashreplace")
    except OSError:
        return None  # some files of /proc and /sys can be opened, yet not read at this moment


def read_first(root: Path, *paths: str) -> str | None:
    """The text of the first of `paths` that can be read: the kernel renames files over the years."""
    for path in paths:
        text = read_text(root, path)
        if text is not None:
            return text
    return None


def read_int(root: Path, *paths: str) -> int | None:
    """The decimal number in the first of `paths` that can be read, None when it holds something else."""
    text = read_first(root, *paths)
    try:
        return None if text is None else int(text)
    except ValueError:
        return None
