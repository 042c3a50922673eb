# SPDX-License-Identifier: GPL-2.0-or-later
"""The service sees dumps on raw devices and has them copied, by a real process, once."""

from __future__ import annotations

import hashlib
import io
import threading
from pathlib import Path

import pytest
from fake_machine import FakeMachine

from kdumpd.config.parse import read_config
from kdumpd.crashes.index import Standing, read_crashes
from kdumpd.dumpfile.manifest import FileRecord
from kdumpd.service.journal import Journal
from kdumpd.service.places import Places
from kdumpd.service.recovery import Recovery
from kdumpd.targets.raw import RawDevice, RawStore

DATA = b"KDUMP   " + bytes(4096)  # as FakeMachine.crash writes it


@pytest.fixture
def root(tmp_path: Path, machine: FakeMachine) -> Path:
    """A machine with one crash on its raw device."""
    root = tmp_path / "raw-machine"
    for name in ("etc", "dev", "sys/class/block/vdb"):
        (root / name).mkdir(parents=True)
    (root / "etc/kdump.conf").write_text("raw /dev/vdb\npath /dumps\n")
    (root / "dev/vdb").write_bytes(bytes(8 << 20))
    record = FileRecord(name="vmcore", size_bytes=len(DATA), sha256=hashlib.sha256(DATA).hexdigest())
    folder = machine.crash("host-1", dump=record)
    with RawDevice(root / "dev/vdb") as raw:
        store = RawStore(raw, "host-1", "raw")
        for name in ("vmcore", "manifest.json"):
            with store.create_file(f"{name}.tmp") as file:
                file.write_at(0, (folder / name).read_bytes())
            store.rename(f"{name}.tmp", name)
    return root


def test_what_is_found_is_copied_once(root: Path) -> None:
    over = threading.Event()
    said = io.StringIO()
    recovery = Recovery(Places.below(root), Journal(said), over.set, units=False)
    config = read_config(root)
    assert recovery.look(config) == ("host-1 on /dev/vdb",)
    assert over.wait(60), "the copy did not end"
    assert not recovery.running
    (crash,) = read_crashes(root / "dumps")
    assert crash.standing is Standing.COMPLETE
    assert recovery.look(config) == ()
    assert said.getvalue() == ""


def test_what_cannot_be_copied_is_told_and_not_tried_for_ever(root: Path) -> None:
    over = threading.Event()
    said = io.StringIO()
    (root / "dumps").write_text("a file is in the way")
    recovery = Recovery(Places.below(root), Journal(said), over.set, units=False)
    config = read_config(root)
    recovery.look(config)
    assert over.wait(60), "the copy did not end"
    assert "could not be copied from raw devices: host-1 on /dev/vdb" in said.getvalue()
    over.clear()
    assert recovery.look(config) == ("host-1 on /dev/vdb",)
    assert not recovery.running


def test_machines_without_a_raw_target_have_nothing_to_do(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/kdump.conf").write_text("path /dumps\n")
    recovery = Recovery(Places.below(tmp_path), Journal(io.StringIO()), lambda: None, units=False)
    assert recovery.look(read_config(tmp_path)) == ()
