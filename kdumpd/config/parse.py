# SPDX-License-Identifier: GPL-2.0-or-later
"""Reads kdump.conf: text in, `Config` out. Never fails on bad text; it collects `Problem`s with file:line.

The language is RHEL's (kdump.conf(5)): one directive and its value per line, `#` starts a comment, a value
in double quotes loses them. Drop-ins are read after the main file in the order of their names; a later file
overrides an earlier one, a directive given twice in one file is an error. Targets may be several: those of one file
are a chain in the order of their lines, and stand in for those of all earlier files.

A problem is fatal where following the rest of the file could send the dump to another place than its owner meant; an
unknown directive is not, because a typing error in a detail must not leave a machine unarmed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kdumpd.config import target_lines
from kdumpd.config.directives import ALIASES, OBSOLETE, READERS, REPEATED, WITHOUT_EFFECT
from kdumpd.config.model import Compression, Config, Problem
from kdumpd.config.targets import Target
from kdumpd.config.values import did_you_mean

CONFIG_FILE = "etc/kdump.conf"
DROPIN_DIR = "etc/kdump.conf.d"
_COLLECTOR = ("dump.levels", "dump.compression", "dump.threads")


def directives() -> frozenset[str]:
    """All names that mean something here, if only that they change nothing."""
    return frozenset(READERS) | frozenset(ALIASES) | target_lines.NAMES | WITHOUT_EFFECT | OBSOLETE


def _code(line: str) -> str:
    """The line without its comment, which also ends a value in quotes, as on RHEL. Raises ValueError."""
    if any(ord(char) < 32 and char != "\t" for char in line):
        raise ValueError("a control character in the line")
    code = line.split("#", 1)[0].strip()
    hidden = next((char for char in code if not char.isprintable() and char != "\t"), None)
    if hidden is not None:
        raise ValueError(f"the line has a character in it that cannot be seen: U+{ord(hidden):04X}")
    return code


def _split(code: str) -> tuple[str, str]:
    """Directive and value; quotes around the whole value are taken off."""
    name, *rest = code.split(None, 1)
    value = rest[0] if rest else ""
    if len(value) >= 2 and value[0] == value[-1] == '"':
        value = value[1:-1].strip()
    return name, value


class _File:
    """One file's lines, turned into changes of Config and problems."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._seen: dict[str, int] = {}
        self._targets: dict[Target, int] = {}
        self._values: dict[str, object] = {}
        self._repeated: dict[str, str] = {}
        self.problems: list[Problem] = []

    def read(self, text: str) -> None:
        """Takes in all lines."""
        for number, line in enumerate(text.removeprefix("\ufeff").split("\n"), start=1):
            try:
                code = _code(line.removesuffix("\r"))
                if code:
                    self._directive(*_split(code), number)
            except ValueError as error:
                self._complain(number, str(error), fatal=True)

    def changes(self) -> dict[str, object]:
        """What the file sets."""
        return {**self._values, **({"targets": tuple(self._targets)} if self._targets else {})}

    def _complain(self, number: int, message: str, *, fatal: bool) -> None:
        shown = "".join(char if char.isprintable() else " " for char in message)  # a value may have tabs in it
        self.problems.append(Problem(file=self._name, line=number, message=shown, fatal=fatal))

    def _directive(self, name: str, value: str, number: int) -> None:
        known = directives()
        if name not in known:
            guess = did_you_mean(name, known - OBSOLETE)
            self._complain(number, f"unknown directive '{name}'{guess}", fatal=False)
        elif name in OBSOLETE:
            self._complain(number, f"'{name}' is obsolete and has no effect; see kdump.conf(5)", fatal=False)
        elif not value:
            raise ValueError(f"'{name}' has no value")
        elif name in target_lines.NAMES:
            self._target(name, value, number)
        else:
            self._setting(name, value, number)

    def _target(self, name: str, value: str, number: int) -> None:
        target = target_lines.read_target(name, value)
        first = self._targets.setdefault(target, number)
        if first != number:
            raise ValueError(
                f"the target '{target}' stands in line {first} already; a second try of it is no other one"
            )

    def _setting(self, name: str, value: str, number: int) -> None:
        key = ALIASES.get(name, name)
        first = self._seen.setdefault(key, number)
        if name in REPEATED:
            value = f"{self._repeated.get(name, '')} {value}".strip()
        elif first != number:
            raise ValueError(f"'{name}' was already set in line {first}")
        if name in WITHOUT_EFFECT:
            self._complain(number, f"'{name}' has no effect in this version", fatal=False)
        else:
            self._values.update(READERS[key](value))
            if name in REPEATED:
                self._repeated[name] = value


def parse_config(files: Sequence[tuple[str, str]]) -> Config:
    """Merges the texts of `files`, (name, text) each, in the order in which they override each other."""
    values: dict[str, Any] = {}
    problems: list[Problem] = []
    for name, text in files:
        file = _File(name)
        file.read(text)
        changes = file.changes()
        if "dump" in changes:
            # A core_collector says all that there is to say; only lines beside it or in later files change that.
            values = {key: value for key, value in values.items() if not key.startswith(_COLLECTOR)}
        values.update(changes)
        problems.extend(file.problems)
    config = Config(problems=tuple(problems))
    for key in [key for key in values if "." in key]:
        group, _, field = key.partition(".")
        values[group] = dataclasses.replace(values.get(group, getattr(config, group)), **{field: values.pop(key)})
    found = dataclasses.replace(config, **values)
    if found.dump.elf and found.dump.compression is not Compression.NONE:
        return dataclasses.replace(found, dump=dataclasses.replace(found.dump, compression=Compression.NONE))
    return found


def config_files(root: Path) -> list[Path]:
    """The files that exist, in the order in which they override each other. A link to /dev/null masks a drop-in."""
    drop_ins = sorted((root / DROPIN_DIR).glob("*.conf"), key=lambda path: path.name)
    paths = [root / CONFIG_FILE, *drop_ins]
    return [path for path in paths if path.exists() and not (path.is_symlink() and str(path.readlink()) == "/dev/null")]


def read_config(root: Path = Path("/")) -> Config:
    """The configuration of the machine below `root`. An unreadable file is a fatal problem of its line 0."""
    texts: list[tuple[str, str]] = []
    unreadable: list[Problem] = []
    for path in config_files(root):
        shown = "/" + str(path.relative_to(root))
        try:
            texts.append((shown, path.read_text(encoding="utf-8")))
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
            unreadable.append(Problem(file=shown, line=0, message=f"cannot be read: {reason}", fatal=True))
    config = parse_config(texts)
    return dataclasses.replace(config, problems=(*unreadable, *config.problems))
