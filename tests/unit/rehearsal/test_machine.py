# SPDX-License-Identifier: GPL-2.0-or-later
"""The scratch machine's frame: how it ends, what it says when it does not begin. QEMU is a script here; the real one
runs in tests/vm/test_rehearsal.py."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from kdumpd.errors import KdumpError, UnsupportedError
from kdumpd.rehearsal import machine, rehearse
from kdumpd.rehearsal.machine import Machine, StageError
from kdumpd.rehearsal.scratch import BUSES


@pytest.fixture
def qemu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program in the place of QEMU, found first."""
    program = tmp_path / "bin/qemu-system-x86_64"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    return program


def start(tmp_path: Path) -> Machine:
    log = tmp_path / "log"
    log.touch()
    return Machine(
        "x86_64",
        accel="tcg",
        kernel=tmp_path / "kernel",
        initrd=tmp_path / "initrd",
        append="rehearsal=crash",
        memory_mib=64,
        bus=BUSES[0],
        disks=[tmp_path / "disk"],
        log=log,
    )


def test_a_missing_qemu_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(machine, "_PLACES", str(tmp_path))
    with pytest.raises(UnsupportedError, match="needs qemu-system-x86_64, which is not installed") as caught:
        machine.find_program("x86_64")
    assert "qemu-system-x86" in str(caught.value.hint)
    with pytest.raises(UnsupportedError, match="no scratch machine for s390x"):
        machine.find_program("s390x")


def test_what_qemu_says_is_passed_on(qemu: Path, tmp_path: Path) -> None:
    qemu.write_text("#!/bin/sh\necho first >&2\necho 'cannot set up guest memory' >&2\nexit 1\n")
    with (
        start(tmp_path) as guest,
        pytest.raises(StageError, match="the scratch machine ended: cannot set up guest memory"),
    ):
        guest.wait_for("up", 20)


def test_lines_are_asked_for_one_after_the_other(qemu: Path, tmp_path: Path) -> None:
    qemu.write_text(f"#!/bin/sh\nprintf 'one\\r\\ntwo x\\r\\n' >{tmp_path}/log\nexec sleep 60\n")
    with start(tmp_path) as guest:
        assert guest.wait_for("^one$", 20)
        assert guest.wait_for("^two (.)", 20)[1] == "x"
        with pytest.raises(StageError, match="nothing came of it within 0 s"):
            guest.wait_for("^one$", 0.3)


def test_the_machine_ends_with_its_block(qemu: Path, tmp_path: Path) -> None:
    qemu.write_text(f"#!/bin/sh\necho $$ >{tmp_path}/pid\nexec sleep 60\n")
    with start(tmp_path) as guest:
        deadline = time.monotonic() + 20
        while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text().strip():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        with pytest.raises(StageError, match="not off within"):
            guest.wait_ended(0.3)
    assert not Path(f"/proc/{(tmp_path / 'pid').read_text().strip()}").exists()


def test_a_console_without_end_is_cut_off(qemu: Path, tmp_path: Path) -> None:
    qemu.write_text(f"#!/bin/sh\nexec yes >{tmp_path}/log\n")
    with start(tmp_path) as guest, pytest.raises(StageError, match="went on for more than 16 MiB"):
        guest.wait_for("never", 60)


def test_without_memory_nothing_is_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rehearse, "read_text", lambda root, path: "MemAvailable:     500000 kB\n")
    with pytest.raises(KdumpError, match="takes 960 MiB of memory, and 488 MiB are available"):
        rehearse._sizes(256 << 20)


def test_a_large_reservation_is_rehearsed_with_less(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rehearse, "read_text", lambda root, path: "MemAvailable:     9000000 kB\n")
    assert rehearse._sizes(4 << 30) == (1024 + rehearse.FIRST_MIB, 1024)
    assert rehearse._sizes(0)[1] == rehearse.LEAST_RESERVED_MIB


def test_the_scratch_folder_is_private_and_goes(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), rehearse._folder(tmp_path, 1) as place:
        assert place.stat().st_mode & 0o777 == 0o700
        (place / "file").touch()
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []
