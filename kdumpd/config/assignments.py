# SPDX-License-Identifier: GPL-2.0-or-later
"""Shell assignments (`NAME="value"`, as in /etc/default and /etc/sysconfig), read as data.

Nothing is evaluated. A value that only a shell could work out ($VARIABLE, `command`, $(command)) is reported with its
line, not guessed. Grammar: POSIX.1-2017, XCU 2.2 (quoting) and 2.9.1 (assignments).
"""

from __future__ import annotations

import dataclasses
import re

from kdumpd.config.model import Problem

_NAME = re.compile(r"(?:export[ \t]+)?([A-Za-z_][A-Za-z0-9_]*)=")
_EXPANSION = re.compile(r"\$[A-Za-z0-9_{(@*#?$!-]|`")
_ESCAPABLE = '$`"\\'
_ENDS = " \t\r\n;"
_OPERATORS = "&|<>()"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """One NAME=value; `line` is where it begins, counted from 1."""

    name: str
    value: str
    line: int


class _ValueError(Exception):
    """Why a value cannot be had without a shell."""


def parse_assignments(file: str, text: str) -> tuple[tuple[Assignment, ...], tuple[Problem, ...]]:
    """All assignments in `text`, in their order, and what stands in it besides. Never raises."""
    return _Reader(file, text).read()


class _Reader:
    """Goes through the text once, from left to right."""

    def __init__(self, file: str, text: str) -> None:
        self._file = file
        self._text = text
        self._at = 0
        self._expansion: str | None = None

    def read(self) -> tuple[tuple[Assignment, ...], tuple[Problem, ...]]:
        """See parse_assignments."""
        found: list[Assignment] = []
        problems: list[Problem] = []
        while self._skip_blank():
            start = self._at
            line = self._text.count("\n", 0, start) + 1
            match = _NAME.match(self._text, start)
            try:
                if match is None:
                    raise _ValueError(f"'{self._word()}' is not an assignment; it is not run")
                self._at = match.end()
                self._expansion = None
                value = self._value()
                if self._expansion is not None:
                    raise _ValueError(f"the value holds '{self._expansion}', which only a shell could work out")
                self._end_of_command(match[1])
                found.append(Assignment(name=match[1], value=value, line=line))
            except _ValueError as problem:
                problems.append(Problem(file=self._file, line=line, message=str(problem), fatal=False))
                if self._at >= len(self._text):
                    self._at = start  # a quote that is never closed must not swallow the rest
                self._skip_line()
        return tuple(found), tuple(problems)

    def _skip_blank(self) -> bool:
        """Past blanks, separators and comments; False at the end of the text."""
        while self._at < len(self._text):
            char = self._text[self._at]
            if char == "#":
                self._skip_line()
            elif char in _ENDS:
                self._at += 1
            else:
                return True
        return False

    def _skip_line(self) -> None:
        end = self._text.find("\n", self._at)
        self._at = len(self._text) if end < 0 else end + 1

    def _word(self) -> str:
        return re.split(r"\s", self._text[self._at : self._at + 60], maxsplit=1)[0]

    def _value(self) -> str:
        """The value that begins here, without its quotes."""
        parts: list[str] = []
        while self._at < len(self._text):
            char = self._text[self._at]
            if char in _ENDS:
                break
            if char in _OPERATORS and self._expansion is None:
                raise _ValueError(f"'{char}' is for a shell, and no shell reads this file here")
            if char == "'":
                parts.append(self._single_quoted())
            elif char == '"':
                parts.append(self._double_quoted())
            elif char == "\\":
                parts.append(self._escaped())
            else:
                self._note_expansion()
                parts.append(char)
                self._at += 1
        return "".join(parts)

    def _single_quoted(self) -> str:
        end = self._text.find("'", self._at + 1)
        if end < 0:
            self._at = len(self._text)
            raise _ValueError("a quote is opened and never closed")
        value = self._text[self._at + 1 : end]
        self._at = end + 1
        return value

    def _double_quoted(self) -> str:
        self._at += 1
        parts: list[str] = []
        while self._at < len(self._text):
            char = self._text[self._at]
            if char == '"':
                self._at += 1
                return "".join(parts)
            following = self._text[self._at + 1 : self._at + 2]
            if char == "\\" and following and following in _ESCAPABLE + "\n":
                parts.append(following.strip("\n"))
                self._at += 2
                continue
            self._note_expansion()
            parts.append(char)
            self._at += 1
        raise _ValueError("a quote is opened and never closed")

    def _escaped(self) -> str:
        char = self._text[self._at + 1 : self._at + 2]
        self._at += 2
        return char.strip("\n")

    def _note_expansion(self) -> None:
        """Remembers the first; the value is read to its end, so that what follows is not taken for the next line."""
        if self._expansion is None and _EXPANSION.match(self._text, self._at):
            self._expansion = self._word()

    def _end_of_command(self, name: str) -> None:
        """What follows a value on its line: nothing, a comment, or the next assignment behind a semicolon."""
        while self._text[self._at : self._at + 1] in (" ", "\t", "\r"):
            self._at += 1
        if self._text[self._at : self._at + 1] not in ("", "\n", ";", "#"):
            raise _ValueError(f"'{self._word()}' follows {name}=; one assignment on a line is read")
