# SPDX-License-Identifier: GPL-2.0-or-later
"""Small readers: panic sysctls, hardware, firmware-assisted dump, IMA, room for a dump."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdumpd.host.fadump import read_fadump
from kdumpd.host.mounts import parse_mountinfo
from kdumpd.host.reservation import has_cma
from kdumpd.host.security import Security, parse_ima_policy, read_image_appraised
from kdumpd.host.space import dump_bytes, free_bytes, parse_meminfo
from kdumpd.host.sysctl import read_triggers
from kdumpd.host.topology import parse_memory, read_topology
from kdumpd.host.uevent import Uevent, parse_uevent

MEMINFO = """MemTotal:        1000 kB
MemFree:          300 kB
Buffers:           20 kB
Cached:           200 kB
AnonPages:        150 kB
Shmem:             50 kB
HugePages_Total:     0
"""
IOMEM = """00001000-0009ffff : System RAM
00100000-7fffffff : System RAM
  60000000-6fffffff : Crash kernel
80000000-87ffffff : System RAM (kmem)
fd000000-fdffffff : PCI Bus 0000:00
100000000-17fffffff : System RAM
"""


def _write(root: Path, path: str, text: str) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text)


def test_what_leads_to_a_panic(tmp_path: Path) -> None:
    _write(tmp_path, "proc/sys/kernel/panic_on_oops", "1\n")
    _write(tmp_path, "proc/sys/kernel/hung_task_panic", "0\n")
    _write(tmp_path, "proc/sys/kernel/panic", "-1\n")
    found = read_triggers(tmp_path)
    assert found.panics == (("oops", True), ("hung-task", False))
    assert found.panics_on("unknown-nmi") is None
    assert (found.sysrq_key, found.reboot_seconds) == (None, -1)


@pytest.mark.parametrize(("text", "expected"), [("0", False), ("1", True), ("438", False), ("8", True), ("x", None)])
def test_the_sysrq_key(tmp_path: Path, text: str, expected: bool | None) -> None:
    _write(tmp_path, "proc/sys/kernel/sysrq", text + "\n")
    assert read_triggers(tmp_path).sysrq_key is expected


def test_memory_ranges_are_joined_and_hidden_ones_unknown(tmp_path: Path) -> None:
    assert parse_memory(IOMEM) == "1000-9ffff,100000-87ffffff,100000000-17fffffff"
    assert parse_memory("00000000-00000000 : System RAM\n" * 3) == ""
    _write(tmp_path, "proc/iomem", IOMEM)
    _write(tmp_path, "sys/devices/system/cpu/present", "0-3\n")
    _write(tmp_path, "sys/devices/system/memory/crash_hotplug", "1\n")
    found = read_topology(tmp_path)
    assert (found.cpus, found.cpus_handled, found.memory_handled) == ("0-3", False, True)


@pytest.mark.parametrize(
    ("path", "text", "expected"),
    [("fadump/enabled", "1", True), ("fadump_enabled", "1", True), ("fadump/enabled", "0", False), ("x", "1", False)],
)
def test_firmware_assisted_dump_under_both_names(tmp_path: Path, path: str, text: str, expected: bool) -> None:
    _write(tmp_path, f"sys/kernel/{path}", text + "\n")
    assert read_fadump(tmp_path) is expected


def test_ima_that_wants_the_image_signed(tmp_path: Path) -> None:
    assert parse_ima_policy("dont_measure x\nappraise func=KEXEC_INITRAMFS_CHECK appraise_type=imasig\n")
    assert not parse_ima_policy("appraise func=KEXEC_KERNEL_CHECK\nmeasure func=KEXEC_INITRAMFS_CHECK\n\n")
    assert not read_image_appraised(tmp_path)


def test_a_used_up_load_limit_forbids_loading() -> None:
    assert Security(load_limit=1).may_load
    assert not Security(load_limit=0).may_load
    assert not Security(load_disabled=True).may_load


def test_the_cma_area_is_there_missing_or_unknown(tmp_path: Path) -> None:
    assert has_cma(tmp_path) is None
    _write(tmp_path, "sys/kernel/kexec/crash_cma_ranges", "\n")
    assert has_cma(tmp_path) is False
    _write(tmp_path, "sys/kernel/kexec/crash_cma_ranges", "100000000-10fffffff\n")
    assert has_cma(tmp_path) is True


@pytest.mark.parametrize(("level", "kilobytes"), [(0, 1000), (16, 700), (8, 850), (31, 380), (30, 380), (1, 1000)])
def test_how_much_a_dump_would_hold(level: int, kilobytes: int) -> None:
    assert dump_bytes(parse_meminfo(MEMINFO), level) == kilobytes * 1024


def test_free_bytes_of_the_mounted_target(tmp_path: Path) -> None:
    (tmp_path / "sys/devices/virtual/block/vda1").mkdir(parents=True)
    (tmp_path / "sys/dev/block").mkdir(parents=True)
    (tmp_path / "sys/dev/block/254:1").symlink_to(tmp_path / "sys/devices/virtual/block/vda1")
    mounts = parse_mountinfo("26 1 254:1 / / rw - ext4 /dev/vda1 rw\n27 26 0:5 / /dev rw - devtmpfs udev rw\n")
    status = os.statvfs(tmp_path)
    found = free_bytes(mounts, "vda1", tmp_path)
    assert found is not None
    assert abs(found - status.f_bfree * status.f_frsize) < 1 << 30
    assert free_bytes(mounts, "vdb1", tmp_path) is None


def test_a_device_event() -> None:
    message = (
        b"add@/devices/system/memory/memory64\0ACTION=add\0DEVPATH=/devices/system/memory/memory64\0SUBSYSTEM=memory\0"
    )
    assert parse_uevent(message) == Uevent("add", "memory", "/devices/system/memory/memory64")
    assert parse_uevent(b"libudev\0\xfe\xed\xca\xfe") is None
    assert parse_uevent(b"add@/x\0ACTION=remove\0") is None


@given(st.binary(max_size=300))
def test_any_bytes_are_an_event_or_none(message: bytes) -> None:
    parse_uevent(message)
    parse_uevent(b"add@" + message)
