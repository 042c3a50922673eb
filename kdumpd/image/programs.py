# SPDX-License-Identifier: GPL-2.0-or-later
"""The administrator's own programs in the capture image: hooks, extra_bins, and what they need to start.

A script brings the interpreter of its first line along, a program its libraries. What a script calls besides has to be
named in extra_bins: that cannot be seen from outside.
"""

from __future__ import annotations

import os
from pathlib import Path

from kdumpd.config.model import Hooks
from kdumpd.errors import BuildError, os_reason
from kdumpd.host.files import below
from kdumpd.image import contents, elf
from kdumpd.image.capture import SEARCH
from kdumpd.image.origin import Origin

_HERE = Origin()
_NESTED = 3


def add_programs(
    tree: contents.Tree, hooks: Hooks, extra_bins: tuple[str, ...], root: Path = Path("/"), origin: Origin = _HERE
) -> list[str]:
    """Adds all of them, hooks from below `root` and programs from `origin`; returns the ELF files among them.

    Raises BuildError naming one that cannot be used.
    """
    adding = _Adding(tree, origin)
    for path in hooks.programs:
        adding.add(path, below(root, path), "the hook")
    for path in extra_bins:
        there = below(root, path)
        adding.add(path, there if there.is_file() else Path(origin.place(path)), "the program")
    return adding.elfs


class _Adding:
    """One pass over programs and, below them, interpreters."""

    def __init__(self, tree: contents.Tree, origin: Origin) -> None:
        self._tree = tree
        self._origin = origin
        self.elfs: list[str] = []

    def add(self, place: str, source: Path, what: str, depth: int = 0) -> None:
        """Adds `source` at `place`, and the interpreter of a script. Raises BuildError."""
        if contents.merged(place) in self._tree.entries:
            if depth == 0:
                self._tree.notes.append(f"{place} is not added, the image has one already")
            return
        if not source.is_file():
            raise BuildError(f"{what} {place} does not exist", hint="correct /etc/kdump.conf, or install it")
        if not os.access(source, os.X_OK):
            raise BuildError(f"{what} {place} may not be executed", hint=f"chmod +x {place}")
        try:
            data = source.read_bytes()
        except OSError as error:
            raise BuildError(f"{what} {place} cannot be read: {os_reason(error)}") from error
        self._tree.add_file(place, str(source))
        if elf.parse_elf(data, str(source)) is not None:
            self.elfs.append(str(source) if self._origin.is_here else place)
        elif data.startswith(b"#!"):
            self._add_interpreter(place, data, depth)
        else:
            self._tree.notes.append(f"{place} is neither a program for this machine nor a script with #! at its start")

    def _add_interpreter(self, place: str, data: bytes, depth: int) -> None:
        words = data[2:].split(b"\n", 1)[0].decode(errors="replace").split()
        if words and Path(words[0]).name == "env":
            found = next((word for word in words[1:] if not word.startswith("-") and "=" not in word), "")
            places = (f"{folder}/{found}" for folder in SEARCH)
            words = [next((path for path in places if self._origin.is_file(path)), found)]
        if not words or not words[0] or depth >= _NESTED:
            raise BuildError(f"the first line of {place} names no interpreter", hint="begin it with #!/bin/sh")
        interpreter = words[0]
        if Path(interpreter).name.startswith("python"):
            self._tree.notes.append(f"{place} is for Python: it has the modules that the collector uses, and no others")
        self.add(interpreter, Path(self._origin.place(interpreter)), f"the interpreter of {place},", depth + 1)
