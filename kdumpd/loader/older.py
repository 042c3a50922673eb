# SPDX-License-Identifier: GPL-2.0-or-later
"""Loading with kexec_load(2): by ourselves where we can, with kexec-tools elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
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
        load_first(opened, (self._own, self._tool))


def load_first(opened: OpenPair, loaders: Sequence[Loads]) -> None:
    """Loads with the first of `loaders` that this kernel has.

    Raises LoadError, or UnsupportedError with all reasons and the hint of the last.
    """
    reasons: list[UnsupportedError] = []
    for loader in loaders:
        try:
            loader.load(opened)
            return
        except UnsupportedError as error:
            reasons.append(error)
    raise UnsupportedError("; and ".join(error.sentence for error in reasons), hint=reasons[-1].hint)
