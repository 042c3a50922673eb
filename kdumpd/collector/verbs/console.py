# SPDX-License-Identifier: GPL-2.0-or-later
"""What a command says, to whom: --message-level chooses, --json makes one object of it."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Mapping
from typing import TextIO

from kdumpd.collector.progress import Progress
from kdumpd.config.core_collector import CollectorOptions, Messages
from kdumpd.errors import KdumpError

NAME = "kdumpd-collect"


class Console:
    """Results go to standard output, unless that carries the dump; all else to standard error."""

    def __init__(self, options: CollectorOptions) -> None:
        self._messages = options.messages
        self._json = options.json
        self.stdout_is_taken = False

    def wants(self, kind: Messages) -> bool:
        """Whether messages of `kind` were asked for."""
        return bool(self._messages & kind)

    def progress(self, phases: int) -> Progress:
        """For work of so many phases."""
        stream: TextIO = sys.stderr
        if not self.wants(Messages.PROGRESS):
            stream = open(os.devnull, "w", encoding="ascii")  # noqa: SIM115  # as long-lived as the process
        return Progress(phases, stream=stream)

    def note(self, text: str) -> None:
        """Something that the user should know, and that does not stand in the way."""
        if self.wants(Messages.COMMON):
            print(f"{NAME}: {text}", file=sys.stderr)

    def notes(self, texts: Iterable[str]) -> None:
        """Notes, each of them once."""
        for text in dict.fromkeys(texts):
            self.note(text)

    def debug(self, text: str) -> None:
        """For who looks for a fault."""
        if self.wants(Messages.DEBUG):
            print(f"{NAME}: {text}", file=sys.stderr)

    def result(self, line: str, facts: Mapping[str, object]) -> None:
        """The end of a command that worked: a line for a person, or `facts` for a program."""
        stream = sys.stderr if self.stdout_is_taken else sys.stdout
        if self._json:
            print(json.dumps(facts), file=stream)
        elif self.wants(Messages.COMMON):
            print(line, file=stream)

    def table(self, text: str) -> None:
        """What was asked for, whatever the message level is; not beside an object for programs, which has it too."""
        if not self._json:
            print(text, file=sys.stderr if self.stdout_is_taken else sys.stdout)

    def failure(self, error: KdumpError, facts: Mapping[str, object]) -> None:
        """The end of a command that did not work."""
        if self._json:
            stream = sys.stderr if self.stdout_is_taken else sys.stdout
            print(json.dumps({"result": "failed", "reason": error.sentence, "hint": error.hint, **facts}), file=stream)
        elif self.wants(Messages.ERROR):
            for line in (error.sentence, error.hint):
                if line is not None:
                    print(f"{NAME}: {line}", file=sys.stderr)
