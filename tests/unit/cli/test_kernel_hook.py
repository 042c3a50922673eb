# SPDX-License-Identifier: GPL-2.0-or-later
"""kdumpctl kernel-hook: the note is left whatever happens, and nobody is told from inside a chroot."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from ctl import kdumpctl
from fake_machine import FakeMachine

from kdumpd.cli import kernels
from kdumpd.service import pending


def test_a_note_is_left_where_no_service_runs(machine: FakeMachine) -> None:
    state = machine.root / "var/lib/kdumpd"
    done = kdumpctl("kernel-hook", "add", "6.12.1-amd64", "/boot/vmlinuz-6.12.1-amd64", f"--root={machine.root}")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert pending.read(state) == {"6.12.1-amd64": pending.Event.ADD}
    assert state.stat().st_mode & 0o777 == 0o700
    assert (state / "pending/6.12.1-amd64").stat().st_mode & 0o777 == 0o600
    done = kdumpctl("kernel-hook", "remove", "6.12.1-amd64", "--json", f"--root={machine.root}")
    assert json.loads(done.stdout) == {"release": "6.12.1-amd64", "event": "remove", "service": False}
    assert pending.read(state) == {"6.12.1-amd64": pending.Event.REMOVE}
    pending.done(state, "6.12.1-amd64", pending.Event.ADD)
    assert pending.read(state) == {"6.12.1-amd64": pending.Event.REMOVE}, "what came later is kept"
    pending.done(state, "6.12.1-amd64", pending.Event.REMOVE)
    assert pending.read(state) == {}


@pytest.mark.parametrize("release", ["../x", "a/b", ".", "", "a b", "x\n", "-x"])
def test_names_that_are_no_release(machine: FakeMachine, release: str) -> None:
    done = kdumpctl("kernel-hook", f"--root={machine.root}", "add", "--", release)
    assert done.returncode in (1, 2)
    assert "Traceback" not in done.stderr
    assert not (machine.root / "var/lib/kdumpd/pending").exists()


def test_strangers_in_the_folder_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "pending").mkdir()
    (tmp_path / "pending/.hidden").write_text("add")
    (tmp_path / "pending/6.1").write_bytes(b"\xff\xfe")
    assert pending.read(tmp_path) == {"6.1": pending.Event.ADD}


def test_a_chroot_is_known_by_its_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SYSTEMD_OFFLINE", raising=False)
    assert kernels.in_chroot(tmp_path)  # no /proc: it cannot be told
    (tmp_path / "proc/1").mkdir(parents=True)
    (tmp_path / "proc/1/root").symlink_to("../..")
    assert not kernels.in_chroot(tmp_path)
    (tmp_path / "proc/1/root").unlink()
    (tmp_path / "proc/1/root").symlink_to("/")
    assert kernels.in_chroot(tmp_path)
    monkeypatch.setenv("SYSTEMD_OFFLINE", "1")
    assert kernels.in_chroot()
