# SPDX-License-Identifier: GPL-2.0-or-later
"""Names that other tools give to crashes."""

from __future__ import annotations

import shlex

import pytest

from kdumpd.config.layout import (
    DUMP_NAMES,
    INCOMPLETE_NAMES,
    LOG_NAMES,
    Layout,
    file_names,
    folder_name,
    kexec_command,
    links,
)

WHEN = 1_700_000_000  # 2023-11-14 22:13:20


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("db-7.example.org", "db-7.example.org"),
        ("../../etc", "_.._etc"),
        ("", "unknown"),
        ("...", "unknown"),
        ("-rf", "rf"),
        ("a b\x1b[2J/\n", "a_b__2J__"),
        ("x" * 300, "x" * 64),
        ("имя", "___"),
    ],
)
def test_names_of_crashes_are_harmless(host: str, expected: str) -> None:
    assert folder_name(Layout.KDUMPD, host, 0) == f"{expected}-19700101T000000Z"


def test_folders_of_layouts() -> None:
    assert folder_name(Layout.KDUMPD, "db1", WHEN) == "db1-20231114T221320Z"
    assert folder_name(Layout.RHEL, "db1", WHEN) == "db1-2023-11-14-22:13:20"
    assert folder_name(Layout.DEBIAN, "db1", WHEN) == "202311142213"


def test_files_of_debians_layout_are_known_again() -> None:
    names = file_names(Layout.DEBIAN, "202311142213")
    assert names["vmcore"] == "dump.202311142213"
    assert names["vmcore-dmesg.txt"] == "dmesg.202311142213"
    for kind, known in (
        ("vmcore", DUMP_NAMES),
        ("vmcore.incomplete", INCOMPLETE_NAMES),
        ("vmcore-dmesg.txt", LOG_NAMES),
    ):
        assert known.fullmatch(names[kind])
    assert links(Layout.DEBIAN, "6.1")["system.map_link"] == "/boot/System.map-6.1"
    assert not file_names(Layout.RHEL, "x")
    assert not links(Layout.KDUMPD, "6.1")


def test_the_command_that_would_have_loaded_it() -> None:
    text = kexec_command("6.1", "console=ttyS0 x='a b'\n")
    assert shlex.split(text)[-1] == "--command-line=console=ttyS0 x='a b'"
    assert text.startswith("kexec -p -s /boot/vmlinuz-6.1 --initrd=/var/lib/kdumpd/6.1/initrd ")
