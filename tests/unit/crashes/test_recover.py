# SPDX-License-Identifier: GPL-2.0-or-later
"""Crashes on a raw device are copied to `path`, whole or not at all, and only then forgotten."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path

import pytest
from fake_machine import FakeMachine

from kdumpd.crashes import recover
from kdumpd.crashes.index import Standing, read_crashes
from kdumpd.crashes.verify import verify
from kdumpd.dumpfile.manifest import FileRecord, Region
from kdumpd.errors import NoSpaceError, TargetError
from kdumpd.targets.raw import RawDevice, RawStore

MIB = 1 << 20
DATA = b"KDUMP   " + bytes(4096)  # as FakeMachine.crash writes it


@pytest.fixture
def device(tmp_path: Path, machine: FakeMachine) -> Path:
    """A device with one complete crash on it."""
    path = tmp_path / "disk"
    path.write_bytes(bytes(8 * MIB))
    digest = hashlib.sha256(DATA).hexdigest()
    regions = (Region(offset=0, size_bytes=len(DATA), sha256=digest),)
    put(path, machine.crash("host-1", dump=FileRecord(name="vmcore", size_bytes=len(DATA), regions=regions)))
    return path


def put(device: Path, folder: Path) -> None:
    """Writes the files of a crash folder to the device as the collector would."""
    with RawDevice(device) as raw:
        store = RawStore(raw, folder.name, "raw")
        for name in ("vmcore-dmesg.txt", "vmcore", "manifest.json"):
            if (folder / name).exists():
                with store.create_file(f"{name}.tmp") as file:
                    file.write_at(0, (folder / name).read_bytes())
                store.rename(f"{name}.tmp", name)


def test_a_crash_is_copied_and_the_device_is_emptied(device: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    assert len(recover.waiting(device)) == 1
    (sentence,) = recover.recover(device, root, "/var/crash")
    assert "was copied from" in sentence
    (found,) = read_crashes(root / "var/crash")
    assert found.standing is Standing.COMPLETE
    assert verify(found) is None
    assert stat.S_IMODE(found.path.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in found.path.iterdir()} == {0o600}
    assert recover.waiting(device) == ()
    assert recover.recover(device, root, "/var/crash") == ()


def test_an_interruption_makes_no_second_copy(device: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed after the copy and before the device is emptied: the next run finds the copy."""
    root = tmp_path / "root"
    root.mkdir()
    monkeypatch.setattr(RawDevice, "clear", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        recover.recover(device, root, "crash")
    monkeypatch.undo()
    assert len(recover.waiting(device)) == 1
    (sentence,) = recover.recover(device, root, "crash")
    assert "copied before" in sentence
    assert len(read_crashes(root / "crash")) == 1
    assert recover.waiting(device) == ()


def test_a_damaged_dump_gets_no_final_name(device: Path, tmp_path: Path) -> None:
    with RawDevice(device) as raw:
        (crash,) = raw.contents.crashes
        dump = next(file for file in crash.files if file.name == "vmcore")
        raw.write(dump.offset + dump.size_bytes // 2, b"\xff\x00\xff")
    (sentence,) = recover.recover(device, tmp_path, "crash")
    assert "is not what was written" in sentence
    (found,) = read_crashes(tmp_path / "crash")
    assert found.standing is Standing.DAMAGED
    assert found.dump is None
    assert (found.path / "vmcore.incomplete").stat().st_size == dump.size_bytes


def test_a_damaged_manifest_leaves_the_device_as_it_is(device: Path, tmp_path: Path) -> None:
    with RawDevice(device) as raw:
        (crash,) = raw.contents.crashes
        manifest = next(file for file in crash.files if file.name == "manifest.json")
        raw.write(manifest.offset, b"?")
    with pytest.raises(TargetError, match=r"manifest\.json on .* checksum differs"):
        recover.recover(device, tmp_path, "crash")
    assert len(recover.waiting(device)) == 1
    assert not (tmp_path / "crash").exists()


def test_an_interrupted_capture_is_recovered_as_what_it_is(tmp_path: Path) -> None:
    """The power went before the manifest: what the table names is kept, under the names of an incomplete crash."""
    path = tmp_path / "disk"
    path.write_bytes(bytes(8 * MIB))
    with RawDevice(path) as raw:
        store = RawStore(raw, "host", "raw")
        with store.create_file("manifest.json.tmp") as manifest:
            manifest.reserve(64 << 10)
            with store.create_file("vmcore-dmesg.txt") as log:
                log.write_at(0, b"the log\n")
            with store.create_file("vmcore.incomplete") as dump:
                dump.write_at(0, b"KDUMP   " * 1000)
                dump.sync()
    recover.recover(path, tmp_path, "crash")
    (found,) = read_crashes(tmp_path / "crash")
    assert found.standing is Standing.INTERRUPTED
    assert found.log is not None
    assert found.log.read_bytes() == b"the log\n"
    assert (found.path / "vmcore.incomplete").stat().st_size == 8000


def test_too_little_room_leaves_the_device_as_it_is(
    device: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.statvfs

    def full(path: str | Path) -> os.statvfs_result:
        found = list(real(path))
        found[4] = 1000  # f_bavail
        return os.statvfs_result(found)

    monkeypatch.setattr(recover.os, "statvfs", full)
    with pytest.raises(NoSpaceError, match="too few for a dump"):
        recover.recover(device, tmp_path, "crash")
    assert len(recover.waiting(device)) == 1


def test_the_command_takes_devices_from_kdump_conf(
    device: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "root"
    for name in ("etc", "sys/class/block/vdb", "dev"):
        (root / name).mkdir(parents=True)
    device.rename(root / "dev/vdb")
    (root / "etc/kdump.conf").write_text("raw /dev/vdb\npath /dumps\n")
    assert recover.main(["--root", str(root)]) == 0
    assert "was copied from" in capsys.readouterr().err
    assert len(read_crashes(root / "dumps")) == 1
    assert recover.main(["--root", str(root)]) == 0
    assert capsys.readouterr().err == ""


def test_a_device_of_somebody_else_is_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(bytes(0x438) + b"\x53\xef" + bytes(8 * MIB))
    before = path.read_bytes()
    assert recover.waiting(path) == ()
    assert recover.main(["--root", str(tmp_path), "--device", str(path)]) == 1
    assert path.read_bytes() == before
