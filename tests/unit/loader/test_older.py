# SPDX-License-Identifier: GPL-2.0-or-later
"""kdumpd.loader.older: who loads with kexec_load(2), and who is asked next."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdumpd.errors import KdumpError, LoadError, UnsupportedError
from kdumpd.host.kexec_pair import OpenPair, Pair
from kdumpd.host.kexec_tools import ToolLoader
from kdumpd.loader.older import OwnElseTool, older_loader

OPENED = OpenPair(Pair(kernel=Path("k"), initrd=Path("i"), initrd_sha256="", cmdline=""), -1, -1)


class Loader:
    def __init__(self, error: KdumpError | None = None) -> None:
        self.error = error
        self.calls = 0

    def load(self, opened: OpenPair) -> None:
        self.calls += 1
        if self.error is not None:
            raise self.error


def test_kexec_tools_stay_where_they_are_right() -> None:
    assert isinstance(older_loader("x86_64"), ToolLoader)
    assert isinstance(older_loader("aarch64"), OwnElseTool)


def test_ours_is_enough() -> None:
    own, tool = Loader(), Loader()
    OwnElseTool(own, tool).load(OPENED)
    assert (own.calls, tool.calls) == (1, 0)


def test_kexec_tools_are_asked_for_what_we_cannot() -> None:
    own, tool = Loader(UnsupportedError("no kcore")), Loader()
    OwnElseTool(own, tool).load(OPENED)
    assert tool.calls == 1


def test_a_load_that_failed_is_not_tried_with_them() -> None:
    own, tool = Loader(LoadError("too small")), Loader()
    with pytest.raises(LoadError, match="too small"):
        OwnElseTool(own, tool).load(OPENED)
    assert tool.calls == 0


def test_both_reasons_are_told() -> None:
    own, tool = Loader(UnsupportedError("no kcore")), Loader(UnsupportedError("no kexec", hint="install it"))
    with pytest.raises(UnsupportedError, match="no kcore; and no kexec") as caught:
        OwnElseTool(own, tool).load(OPENED)
    assert caught.value.hint == "install it"
