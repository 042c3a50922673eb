# SPDX-License-Identifier: GPL-2.0-or-later
"""Words of kdump.conf that mean the same wherever they stand: paths, choices.

A reader takes the text of a value and raises ValueError, whose text is the complaint, for what it cannot be.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable
from typing import TypeVar

_LONGEST_PATH = 1024
_UNITS_SEC = {"": 1, "s": 1, "sec": 1, "m": 60, "min": 60, "h": 3600}

Choice = TypeVar("Choice", bound=enum.StrEnum)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The end of a complaint: the known word that is most like `word`, if any is."""
    import difflib  # only for who mistyped: the service is to stay small

    close = difflib.get_close_matches(word.lower(), list(known), n=1)
    return f"; did you mean '{close[0]}'?" if close else ""


def choice(kinds: Iterable[Choice], text: str, what: str) -> Choice:
    """One word of an enumeration or of a part of it; `what` is what it should have been, with its article."""
    known = {str(kind): kind for kind in kinds}
    if text not in known:
        raise ValueError(f"'{text}' is not {what}; use one of {', '.join(known)}{did_you_mean(text, known)}")
    return known[text]


def seconds(text: str, low: int, high: int) -> int:
    """A time as seconds: a number, or one with a unit (s, min, h)."""
    match = re.fullmatch(r"([0-9]{1,9}) ?([a-z]*)", text)
    if match is None or match[2] not in _UNITS_SEC:
        raise ValueError(f"'{text}' is not a time; write seconds, or a number with s, min or h, as in 10min")
    found = int(match[1]) * _UNITS_SEC[match[2]]
    if not low <= found <= high:
        raise ValueError(f"'{text}' is not between {low} and {high} seconds")
    return found


def switch(text: str) -> bool:
    """1 or 0, yes or no."""
    if text not in ("0", "1", "no", "yes"):
        raise ValueError(f"'{text}' is neither 1 nor 0")
    return text in ("1", "yes")


def whole_number(text: str, low: int, high: int, what: str) -> int:
    """A number in decimal digits; `what` is what it is a number of."""
    if not re.fullmatch(r"[0-9]{1,9}", text) or not low <= int(text) <= high:
        raise ValueError(f"'{text}' is not a number of {what} from {low} to {high}")
    return int(text)


def size_or_percent(text: str) -> tuple[int, int]:
    """Bytes and percents, one of them 0: 512M, 2G, or 10%."""
    match = re.fullmatch(r"([0-9]{1,9}) ?([KMGTkmgt]?)i?[Bb]?|([0-9]{1,2}) ?%", text)
    if match is None:
        raise ValueError(f"'{text}' is neither a size nor a share; write it as in 512M, 2G or 10%")
    if match[3] is not None:
        return 0, int(match[3])
    return int(match[1]) << 10 * " KMGT".index(match[2].upper() or " "), 0


def one_path(text: str, what: str) -> str:
    """An absolute path in one word."""
    if len(text.split()) != 1:
        raise ValueError(f"{what} is one path without blanks; '{text}' has more words")
    return absolute_path(text, what)


def words(text: str, pattern: str, what: str) -> tuple[str, ...]:
    """Words that all match `pattern`; `what` is what one of them should have been, with its article."""
    found = tuple(dict.fromkeys(text.split()))
    for word in found:
        if not re.fullmatch(pattern, word):
            raise ValueError(f"'{word}' is not {what}")
    return found


def absolute_path(text: str, what: str) -> str:
    """A path from the root, without what could lead elsewhere than it seems to."""
    if not text.startswith("/"):
        raise ValueError(f"{what} must begin with a slash, '{text}' does not; did you mean '/{text}'?")
    if ".." in text.split("/"):
        raise ValueError(f"{what} must not contain '..'")
    if len(text) > _LONGEST_PATH:
        raise ValueError(f"{what} has {len(text)} characters; at most {_LONGEST_PATH} are taken")
    return "/" + "/".join(part for part in text.split("/") if part)
