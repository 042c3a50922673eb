# SPDX-License-Identifier: GPL-2.0-or-later
"""kdumpd.host: reservation, machine, security, files."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdumpd.host.machine import read_machine
from kdumpd.host.reservation import MemoryRange, parse_iomem, read_memory_bytes, read_reservation
from kdumpd.host.security import parse_lockdown, read_security

IOMEM = """\
00000000-00000fff : Reserved
00001000-0009fbff : System RAM
00100000-7fffffff : System RAM
  01000000-01ffffff : Kernel code
  60000000-6fffffff : Crash kernel
100000000-17fffffff : System RAM
  170000000-177ffffff : Crash kernel
"""


def _write(root: Path, path: str, text: str) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text)


def test_ranges_of_iomem() -> None:
    ranges = parse_iomem(IOMEM, "Crash kernel")
    assert ranges == (MemoryRange(start=0x60000000, last=0x6FFFFFFF), MemoryRange(start=0x170000000, last=0x177FFFFFF))
    assert ranges[0].size_bytes == 256 << 20


def test_hidden_addresses_are_no_ranges() -> None:
    assert parse_iomem("00000000-00000000 : Crash kernel\n", "Crash kernel") == ()


@pytest.mark.parametrize("name", ["sys/kernel/kexec_crash_size", "sys/kernel/kexec/crash_size"])
def test_both_names_of_the_size_are_read(tmp_path: Path, name: str) -> None:
    _write(tmp_path, name, "268435456\n")
    assert read_reservation(tmp_path).size_bytes == 256 << 20


def test_without_sysfs_iomem_answers(tmp_path: Path) -> None:
    _write(tmp_path, "proc/iomem", IOMEM)
    found = read_reservation(tmp_path)
    assert found.size_bytes == 384 << 20
    assert len(found.ranges) == 2


def test_nothing_is_nothing(tmp_path: Path) -> None:
    assert read_reservation(tmp_path).size_bytes == 0
    assert read_memory_bytes(tmp_path) == 0


def test_memory_of_the_machine(tmp_path: Path) -> None:
    _write(tmp_path, "proc/meminfo", "MemTotal:        2048 kB\nMemFree: 1 kB\n")
    assert read_memory_bytes(tmp_path) == 2 << 20
    _write(tmp_path, "proc/iomem", IOMEM)
    assert read_memory_bytes(tmp_path) == (0x9FBFF - 0x1000 + 1) + (0x7FFFFFFF - 0x100000 + 1) + (2 << 30)


def test_machine_below_a_root(tmp_path: Path) -> None:
    _write(tmp_path, "proc/sys/kernel/arch", "aarch64\n")
    _write(tmp_path, "proc/sys/kernel/osrelease", "6.1.0\n")
    _write(tmp_path, "proc/sys/kernel/random/boot_id", "abc\n")
    found = read_machine(tmp_path)
    assert (found.arch, found.release, found.boot_id) == ("aarch64", "6.1.0", "abc")


@pytest.mark.parametrize(
    ("text", "word"),
    [("none [integrity] confidentiality\n", "integrity"), ("[none] integrity\n", "none"), ("", None)],
)
def test_lockdown(text: str, word: str | None) -> None:
    assert parse_lockdown(text) == word


def test_security_facts(tmp_path: Path) -> None:
    assert not read_security(tmp_path).load_disabled
    _write(tmp_path, "proc/sys/kernel/kexec_load_disabled", "1\n")
    _write(tmp_path, "proc/sys/kernel/kexec_load_limit_panic", "-1\n")
    _write(tmp_path, "sys/kernel/security/lockdown", "none integrity [confidentiality]\n")
    efi = tmp_path / "sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"
    efi.parent.mkdir(parents=True)
    efi.write_bytes(b"\6\0\0\0\1")
    found = read_security(tmp_path)
    assert found.load_disabled
    assert found.load_limit is None
    assert found.lockdown == "confidentiality"
    assert found.secure_boot is True
    _write(tmp_path, "proc/sys/kernel/kexec_load_limit_panic", "0\n")
    assert read_security(tmp_path).load_limit == 0
