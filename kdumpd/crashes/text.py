# SPDX-License-Identifier: GPL-2.0-or-later
"""Text out of crashed memory or strangers' files, made fit for a terminal and the journal."""

from __future__ import annotations


def printable(text: str) -> str:
    """`text` on one line; control characters, escape sequences and lone surrogates become a replacement character."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)
