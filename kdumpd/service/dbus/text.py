# SPDX-License-Identifier: GPL-2.0-or-later
"""Strings as D-Bus takes them."""

from __future__ import annotations


def clean(text: str) -> str:
    """No NUL, and no lone surrogates (file names that are no UTF-8 have them)."""
    return str(text).replace("\0", "\N{REPLACEMENT CHARACTER}").encode(errors="replace").decode()
