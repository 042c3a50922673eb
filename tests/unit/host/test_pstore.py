# SPDX-License-Identifier: GPL-2.0-or-later
"""Records of panics in pstore: found where they are put, and told from oopses."""

from __future__ import annotations

import os
from pathlib import Path

from kdumpd.host.pstore import read_panics


def put(root: Path, path: str, head: bytes, seconds: int) -> None:
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(head + b"\n<4>[    1.0] text\n")
    os.utime(file, (seconds, seconds))


def test_panics_are_found_and_oopses_are_not(tmp_path: Path) -> None:
    put(tmp_path, "sys/fs/pstore/dmesg-ramoops-0", b"Panic#2 Part1", 2000)
    put(tmp_path, "sys/fs/pstore/dmesg-ramoops-1", b"Oops#1 Part1", 1500)
    put(tmp_path, "sys/fs/pstore/console-ramoops-0", b"Panic#9 Part1", 3000)
    put(tmp_path, "var/lib/systemd/pstore/1000/001/dmesg-efi-1", b"Panic#1 Part3", 1000)
    put(tmp_path, "sys/fs/pstore/dmesg-efi-2.enc.z", b"\x78\x9c", 1000)
    found = read_panics(tmp_path)
    assert [(record.key, record.time_usec) for record in found] == [
        ("Part3@1000", 1_000_000_000),
        ("Part1@2000", 2_000_000_000),
    ]


def test_a_record_keeps_its_key_when_it_is_put_away(tmp_path: Path) -> None:
    put(tmp_path, "sys/fs/pstore/dmesg-efi-17", b"Panic#1 Part1", 1000)
    put(tmp_path / "other", "var/lib/systemd/pstore/1000/dmesg-efi-17", b"Panic#1 Part1", 1000)
    assert [record.key for record in read_panics(tmp_path)] == [
        record.key for record in read_panics(tmp_path / "other")
    ]


def test_no_pstore(tmp_path: Path) -> None:
    assert read_panics(tmp_path) == ()
