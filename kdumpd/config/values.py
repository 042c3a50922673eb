# SPDX-License-Identifier: GPL-2.0-or-later
"""Words of kdump.conf that mean the same wherever they stand: paths, choices.

A reader takes the text of a value and raises ValueError, whose text is the complaint, for what it cannot be.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from typing import TypeVar

_LONGEST_PATH = 1024

Choice = TypeVar("Choice", bound=enum.StrEnum)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The end of a complaint: the known word that is most like `word`, if any is."""
    import difflib  # only for who mistyped: the service is to stay small

    close = difflib.get_close_matches(word.lower(), list(known), n=1)
    return f"; did you mean '{close[0]}'?" if close else ""


def choice(kinds: type[Choice], text: str, what: str) -> Choice:
    """One word of an enumeration; `what` is what it should have been, with its article."""
    try:
        return kinds(text)
    except ValueError:
        known = [str(kind) for kind in kinds]
        guess = did_you_mean(text, known)
        raise ValueError(f"'{text}' is not {what}; use one of {', '.join(known)}{guess}") from None


def absolute_path(text: str, what: str) -> str:
    """A path from the root, without what could lead elsewhere than it seems to."""
    if not text.startswith("/"):
        raise ValueError(f"{what} must begin with a slash, '{text}' does not; did you mean '/{text}'?")
    if ".." in text.split("/"):
        raise ValueError(f"{what} must not contain '..'")
    if len(text) > _LONGEST_PATH:
        raise ValueError(f"{what} has {len(text)} characters; at most {_LONGEST_PATH} are taken")
    return "/" + "/".join(part for part in text.split("/") if part)
