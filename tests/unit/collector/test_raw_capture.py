# SPDX-License-Identifier: GPL-2.0-or-later
"""Captures of a small dead kernel to a raw device, stood in for by a file, and what is copied from it."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest
from fake_kernel import OLD, PAGES, FakeKernel

from kdumpd.collector.capture import Places, capture
from kdumpd.config.capture import CaptureConfig, RawDestination
from kdumpd.config.disk_identity import DiskIdentity
from kdumpd.config.model import DEFAULT_DUMP, Action
from kdumpd.crashes.index import Standing, read_crashes
from kdumpd.crashes.recover import recover, waiting
from kdumpd.crashes.verify import verify
from kdumpd.dumpfile.reader import verify as verify_dump
from kdumpd.targets import raw

MIB = 1 << 20
SETTINGS = CaptureConfig(
    hostname="host",
    kernel="6.1.0-fake",
    destinations=(
        RawDestination(device="/dev/vdb", identity=DiskIdentity(name="crashes", partition=0, sectors=16 << 11)),
    ),
    dump=DEFAULT_DUMP,
    final_action=Action.REBOOT,
    failure_action=Action.REBOOT,
)


@pytest.fixture
def core(tmp_path: Path) -> Path:
    kernel = FakeKernel(OLD)
    kernel.pages[PAGES // 2 :, 0] = 1 << 4
    kernel.memory[0x300000:0x340000] = os.urandom(0x40000)
    return kernel.write(tmp_path / "core")


def disk(tmp_path: Path, mib: int) -> Path:
    """Full of what was there before, of which no filesystem is known."""
    path = tmp_path / "disk"
    path.write_bytes(bytes(MIB) + b"\xa5" * ((mib - 1) * MIB))
    return path


def run(tmp_path: Path, core: Path, device: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """One capture to `device`; the exit status."""
    monkeypatch.setattr(raw, "wait_for_disk", lambda *_: device)
    (tmp_path / "capture.json").write_text(SETTINGS.to_json())
    assert CaptureConfig.from_json(SETTINGS.to_json(), "test") == SETTINGS
    places = dataclasses.replace(
        Places(),
        settings=tmp_path / "capture.json",
        image=tmp_path / "image.json",
        vmcore=core,
        mountpoint=tmp_path / "mnt",
        heartbeat=None,
        answers=None,
        kmsg=None,
    )
    return capture(places)


def test_two_captures_and_their_copies(core: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = disk(tmp_path, 16)
    assert run(tmp_path, core, device, monkeypatch) == 0
    assert run(tmp_path, core, device, monkeypatch) == 0
    assert len(waiting(device)) == 2
    (tmp_path / "root").mkdir()
    recover(device, tmp_path / "root", "/var/crash")
    found = read_crashes(tmp_path / "root/var/crash")
    assert [crash.standing for crash in found] == [Standing.COMPLETE] * 2
    for crash in found:
        assert crash.dump is not None
        assert verify(crash) is None
        verify_dump(crash.dump)
        assert crash.manifest is not None
        assert crash.manifest.pages["verified"] > 0
    assert waiting(device) == ()


def test_a_device_that_is_too_small_holds_what_fits(
    core: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = disk(tmp_path, 1)
    os.truncate(device, 300 << 10)
    assert run(tmp_path, core, device, monkeypatch) == 1
    (tmp_path / "root").mkdir()
    recover(device, tmp_path / "root", "/crash")
    (crash,) = read_crashes(tmp_path / "root/crash")
    assert crash.standing in (Standing.INCOMPLETE, Standing.LOG_ONLY)
    assert crash.dump is None
    assert crash.problem is not None or crash.manifest is not None


def test_a_foreign_device_is_left_alone(core: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = disk(tmp_path, 8)
    with device.open("r+b") as file:
        file.write(b"XFSB")
    before = device.read_bytes()
    assert run(tmp_path, core, device, monkeypatch) == 1
    assert device.read_bytes() == before
