# SPDX-License-Identifier: GPL-2.0-or-later
"""Loading with kexec_load(2): by ourselves where we can, with kexec-tools elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from kdumpd.errors import UnsupportedError
from kdumpd.host import kexec_segments
from kdumpd.host.kexec_pair import OpenPair
from kdumpd.host.kexec_tools import ToolLoader


class Loads(Protocol):
    """What loads a pair."""

    def load(self, opened: OpenPair) -> None:
        """Raises LoadError or UnsupportedError."""


def older_loader(arch: str, *, root: Path = Path("/")) -> Loads:
    """The loader for the older system call on `arch`."""
    tool = ToolLoader(arch, root=root)
    if arch != kexec_segments.ARCH:
        return tool
    return OwnElseTool(kexec_segments.SegmentLoader(arch, root=root), tool)


class OwnElseTool:
    """Asks kexec-tools for what the first one cannot do on this machine."""

    def __init__(self, own: Loads, tool: Loads) -> None:
        self._own = own
        self._tool = tool

    def load(self, opened: OpenPair) -> None:
        """Raises LoadError, or UnsupportedError with both reasons when neither can."""
        try:
            self._own.load(opened)
        except UnsupportedError as missing:
            try:
                self._tool.load(opened)
            except UnsupportedError as error:
                raise UnsupportedError(f"{missing.sentence}; and {error.sentence}", hint=error.hint) from error
