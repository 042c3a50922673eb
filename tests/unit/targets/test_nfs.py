# SPDX-License-Identifier: GPL-2.0-or-later
"""Mounting NFS: what the kernel is told, and that nothing takes longer than it may."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from kdumpd.config.capture import NfsDestination
from kdumpd.errors import TargetError
from kdumpd.targets import nfs
from kdumpd.targets.nfs import NfsExport

WANTED = NfsDestination(server="files", export="/e", directory="/c", addresses=("192.0.2.1", "2001:db8::1"))


def test_every_version_is_tried_on_every_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def mount(destination: NfsDestination, address: str, version: str, where: Path) -> str:
        tried.append((address, version))
        return "No route to host"

    monkeypatch.setattr(nfs, "_mount", mount)
    with (
        pytest.raises(TargetError, match=r"files:/e cannot be mounted: version 4\.2: No route to host") as caught,
        NfsExport(WANTED, tmp_path / "m").open_crash("x", lambda: None),
    ):
        pass
    assert tried == [(address, version) for address in WANTED.addresses for version in ("4.2", "4.1", "4.0", "3")]
    assert caught.value.hint == "is it exported to this machine? showmount -e files"


def test_a_mount_that_hangs_does_not_hold_up_the_next_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = threading.Event()

    def mount(*arguments: object) -> str:
        free.wait(30)
        return ""

    monkeypatch.setattr(nfs, "_mount", mount)
    beats = []
    began = time.monotonic()
    with (
        pytest.raises(TargetError, match="no answer in time"),
        NfsExport(WANTED, tmp_path / "m", deadline_sec=1.2).open_crash("x", lambda: beats.append(1)),
    ):
        pass
    free.set()
    assert time.monotonic() - began < 10
    assert beats


def test_the_kernel_s_own_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What mount(2) gets, and what it answers: this kernel has no server to reach."""
    told: list[tuple[object, ...]] = []

    class Libc:
        def mount(self, *arguments: object) -> int:
            told.append(arguments)
            return -1

    monkeypatch.setattr(nfs.ctypes, "CDLL", lambda name, use_errno: Libc())
    monkeypatch.setattr(nfs.ctypes, "get_errno", lambda: 110)
    assert nfs._mount(WANTED, "192.0.2.1", "4.2", tmp_path) == "Connection timed out"
    assert nfs._mount(WANTED, "2001:db8::1", "3", tmp_path) == "Connection timed out"
    bounds = b"soft,timeo=50,retrans=2,nolock,nosharecache"
    assert (told[0][0], told[0][2], told[0][4]) == (
        b"192.0.2.1:/e", b"nfs", bounds + b",vers=4.2,addr=192.0.2.1,proto=tcp",
    )  # fmt: skip
    assert (told[1][0], told[1][2]) == (b"[2001:db8::1]:/e", b"nfs")
    assert told[1][4] == (
        bounds + b",vers=3,addr=2001:db8::1,proto=tcp6,mountaddr=2001:db8::1,mountproto=tcp6,mountvers=3"
    )
