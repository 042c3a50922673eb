# SPDX-License-Identifier: GPL-2.0-or-later
"""kdumpd.crashes: what counts as a crash, in what order, and what is not believed."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from kdumpd.config.model import Action, Config
from kdumpd.config.targets import LocalTarget, RawTarget, SshTarget
from kdumpd.crashes.index import Standing, find_crash, read_crash, read_crashes
from kdumpd.crashes.place import crash_folder, crash_folders, read_all_crashes
from kdumpd.crashes.retention import remove
from kdumpd.crashes.text import printable
from kdumpd.dumpfile.manifest import FileRecord, Manifest, Result
from kdumpd.errors import NotFoundError, TargetError

DATA = b"KDUMP   " * 100


def _crash(
    folder: Path,
    name: str,
    *,
    second: int = 0,
    result: Result = Result.COMPLETE,
    data: bytes = DATA,
    hostname: str = "host",
) -> Path:
    path = folder / name
    path.mkdir(parents=True)
    (path / "vmcore").write_bytes(data)
    manifest = Manifest(
        result=result,
        hostname=hostname,
        kernel="6.1.0",
        panic="Kernel panic - not syncing: sysrq triggered crash",
        started_usec=second * 1_000_000,
        finished_usec=(second + 7) * 1_000_000,
        kdumpd_version="0.1.0",
        dump=FileRecord(name="vmcore", size_bytes=len(DATA), sha256="00"),
    )
    (path / "manifest.json").write_text(manifest.to_json())
    return path


def test_crashes_are_sorted_by_time(tmp_path: Path) -> None:
    _crash(tmp_path, "b", second=1)
    _crash(tmp_path, "a", second=2)
    _crash(tmp_path, "c", second=0)
    crashes = read_crashes(tmp_path)
    assert [crash.name for crash in crashes] == ["c", "b", "a"]
    assert crashes[0].standing is Standing.COMPLETE
    assert crashes[0].took_usec == 7_000_000
    assert crashes[0].dump_bytes == len(DATA)


def test_no_folder_is_no_crash(tmp_path: Path) -> None:
    assert read_crashes(tmp_path / "nothing") == ()


def test_a_folder_that_is_a_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TargetError, match="cannot be read"):
        read_crashes(tmp_path / "file")


@pytest.mark.parametrize("size", [0, len(DATA) - 1, len(DATA) + 1])
def test_a_dump_of_another_size_is_not_complete(tmp_path: Path, size: int) -> None:
    path = _crash(tmp_path, "a", data=b"x" * size)
    crash = read_crash(path)
    assert crash is not None
    assert crash.standing is Standing.DAMAGED
    assert str(len(DATA)) in str(crash.problem)


def test_a_dump_without_its_final_name_is_not_complete(tmp_path: Path) -> None:
    path = _crash(tmp_path, "a")
    (path / "vmcore").rename(path / "vmcore.incomplete")
    crash = read_crash(path)
    assert crash is not None
    assert crash.standing is Standing.DAMAGED
    assert crash.dump_bytes == len(DATA)


def test_a_dump_that_is_a_link_is_not_complete(tmp_path: Path) -> None:
    path = _crash(tmp_path, "a")
    (path / "vmcore").rename(tmp_path / "elsewhere")
    (path / "vmcore").symlink_to(tmp_path / "elsewhere")
    crash = read_crash(path)
    assert crash is not None
    assert crash.standing is Standing.DAMAGED


@pytest.mark.parametrize("result", [Result.INCOMPLETE, Result.LOG_ONLY, Result.FAILED])
def test_what_the_manifest_calls_bad_is_bad(tmp_path: Path, result: Result) -> None:
    crash = read_crash(_crash(tmp_path, "a", result=result))
    assert crash is not None
    assert crash.standing.value == result.value


def test_a_capture_that_never_ended(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/vmcore.incomplete").write_bytes(b"xyz")
    (tmp_path / "a/vmcore-dmesg.txt").write_text("log")
    os.utime(tmp_path / "a/vmcore.incomplete", (5, 5))
    (crash,) = read_crashes(tmp_path)
    assert crash.standing is Standing.INTERRUPTED
    assert crash.dump_bytes == 3
    assert crash.time_usec == 5_000_000
    assert crash.log == tmp_path / "a/vmcore-dmesg.txt"
    assert crash.manifest is None


def test_only_a_log_was_left(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/vmcore-dmesg.txt").write_text("log")
    (crash,) = read_crashes(tmp_path)
    assert crash.standing is Standing.INTERRUPTED


def test_other_directories_and_links_are_left_out(tmp_path: Path) -> None:
    crashes = tmp_path / "crash"
    (crashes / "lost+found").mkdir(parents=True)
    (crashes / "file").write_text("x")
    (crashes / "link").symlink_to(_crash(tmp_path, "outside"))
    (crashes / "dangling").symlink_to("/nowhere")
    os.mkfifo(crashes / "fifo")
    assert read_crashes(crashes) == ()


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", "1", '{"format": 2}', '{"format": 1}', '"' + "x" * 2_000_000 + '"', "\x00\xff"]
)
def test_a_bad_manifest_is_a_damaged_crash(tmp_path: Path, text: str) -> None:
    path = _crash(tmp_path, "a")
    (path / "manifest.json").write_text(text)
    (crash,) = read_crashes(tmp_path)
    assert crash.standing is Standing.DAMAGED
    assert crash.problem


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: os.symlink("/etc/shadow", path), os.mkdir])
def test_a_manifest_that_is_no_file_is_not_opened(tmp_path: Path, make: object) -> None:
    path = _crash(tmp_path, "a")
    (path / "manifest.json").unlink()
    (path / "vmcore").unlink()
    make(path / "manifest.json")  # type: ignore[operator]
    assert read_crash(path) is None


def test_a_manifest_that_never_named_its_dump(tmp_path: Path) -> None:
    path = _crash(tmp_path, "a")
    raw = json.loads((path / "manifest.json").read_text())
    raw["dump"] = None
    (path / "manifest.json").write_text(json.dumps(raw))
    crash = read_crash(path)
    assert crash is not None
    assert crash.standing is Standing.DAMAGED


def test_names_numbers_and_parts_find_a_crash(tmp_path: Path) -> None:
    for second in range(3):
        _crash(tmp_path, f"host-20260101T00000{second}Z", second=second)
    crashes = read_crashes(tmp_path)
    assert find_crash(crashes, "last") is crashes[2]
    assert find_crash(crashes, "1") is crashes[2]
    assert find_crash(crashes, "3") is crashes[0]
    assert find_crash(crashes, "000001Z") is crashes[1]
    assert find_crash(crashes, crashes[0].name) is crashes[0]
    for name in ("4", "nothing", "", "host"):
        with pytest.raises(NotFoundError):
            find_crash(crashes, name)
    with pytest.raises(NotFoundError, match="No crash"):
        find_crash((), "last")


def test_the_folder_of_the_default_target(tmp_path: Path) -> None:
    assert crash_folder(Config(path="/var/crash"), tmp_path) == tmp_path / "var/crash"


def test_the_folder_of_a_device(tmp_path: Path) -> None:
    block = tmp_path / "sys/devices/x/block/sdb"
    block.mkdir(parents=True)
    for link in ("sys/class/block/sdb", "sys/dev/block/8:16"):
        (tmp_path / link).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / link).symlink_to(block)
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/sdb").touch()
    mountinfo = tmp_path / "proc/self/mountinfo"
    mountinfo.parent.mkdir(parents=True)
    mountinfo.write_text("26 1 8:1 / / rw - ext4 /dev/sda1 rw\n")
    config = Config(targets=(LocalTarget(fstype="ext4", device="/dev/sdb"),), path="/crash")
    with pytest.raises(TargetError, match="not mounted"):
        crash_folder(config, tmp_path)
    mountinfo.write_text(mountinfo.read_text() + "30 26 8:16 / /mnt/dumps rw - ext4 /dev/sdb rw\n")
    assert crash_folder(config, tmp_path) == tmp_path / "mnt/dumps/crash"


def test_the_crashes_of_a_chain(tmp_path: Path) -> None:
    """What is seen counts; a crash whose log went elsewhere first is listed once, as what is worth most."""
    for name, number in (("sdb", "8:16"), ("sdc", "8:32")):
        block = tmp_path / f"sys/devices/{name}/block/{name}"
        block.mkdir(parents=True)
        for link in (f"sys/class/block/{name}", f"sys/dev/block/{number}"):
            (tmp_path / link).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / link).symlink_to(block)
        (tmp_path / "dev").mkdir(exist_ok=True)
        (tmp_path / "dev" / name).touch()
    mountinfo = tmp_path / "proc/self/mountinfo"
    mountinfo.parent.mkdir(parents=True)
    mountinfo.write_text("30 1 8:16 / /b rw - ext4 /dev/sdb rw\n31 1 8:32 / /c rw - ext4 /dev/sdc rw\n")
    disks = tuple(LocalTarget(fstype="ext4", device=f"/dev/sd{letter}") for letter in "cb")
    config = Config(targets=(SshTarget(user="u", host="h"), *disks, RawTarget(device="/dev/sdd")), path="/crash")
    assert crash_folders(config, tmp_path) == (tmp_path / "c/crash", tmp_path / "b/crash", tmp_path / "crash")
    _crash(tmp_path / "c/crash", "one", second=1, result=Result.LOG_ONLY)
    _crash(tmp_path / "b/crash", "one", second=1)
    _crash(tmp_path / "b/crash", "two", second=2)
    _crash(tmp_path / "crash", "three", second=3)
    found = read_all_crashes(config, tmp_path)
    assert [crash.name for crash in found] == ["one", "two", "three"]
    assert [crash.standing for crash in found] == [Standing.COMPLETE] * 3
    with pytest.raises(TargetError, match="which this machine does not see"):
        crash_folders(Config(targets=(SshTarget(user="u", host="h"),)), tmp_path)


def test_folders_of_one_crash_are_one_crash(tmp_path: Path) -> None:
    """A log that went ahead of its dump counts with it, as long as both are by one run of one machine's collector."""
    folder = tmp_path / "var/crash"
    log = _crash(folder, "one", second=7, result=Result.LOG_ONLY)
    dump = _crash(folder, "one-2", second=7)
    half = _crash(folder, "half", second=7, result=Result.INCOMPLETE)
    _crash(folder, "elsewhere", second=7, result=Result.LOG_ONLY, hostname="other")
    _crash(folder, "later", second=8, result=Result.LOG_ONLY)
    (_crash(folder, "cut", second=7) / "manifest.json").write_text("{")
    found = {crash.name: crash for crash in read_all_crashes(Config(), tmp_path)}
    assert set(found) == {"one-2", "half", "elsewhere", "later", "cut"}
    assert {name: crash.also for name, crash in found.items() if crash.also} == {"one-2": (log,)}
    remove(found["one-2"])
    assert not log.exists()
    assert not dump.exists()
    assert half.exists()
    assert len(read_all_crashes(Config(), tmp_path)) == 4


def test_what_came_to_the_root_filesystem_is_seen(tmp_path: Path) -> None:
    """As a last resort, when no other target could be reached; nor need one be seen now."""
    config = Config(targets=(SshTarget(user="u", host="h"),), failure_action=Action.DUMP_TO_ROOTFS)
    _crash(tmp_path / "var/crash", "one", second=1)
    assert [crash.name for crash in read_all_crashes(config, tmp_path)] == ["one"]


def test_control_characters_become_visible() -> None:
    assert printable("a\x1b[2J\nb\x00\ud800c") == "a�[2J�b��c"
