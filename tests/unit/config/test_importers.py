# SPDX-License-Identifier: GPL-2.0-or-later
"""Other tools' settings: what is equal carries over, what is not is named, and nothing slips through unread."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdumpd.config.importers import Dialect, Imported, import_settings, known_names
from kdumpd.config.parse import parse_config

TOP = Path(__file__).resolve().parents[3]

DEBIAN = """
# kdump-tools configuration
USE_KDUMP=1
#KDUMP_KERNEL=/var/lib/kdump/vmlinuz
KDUMP_COREDIR="/srv/crash"
KDUMP_FAIL_CMD="poweroff -f"
MAKEDUMP_ARGS="-c -d 17"
KDUMP_NUM_DUMPS=3
KDUMP_CMDLINE_APPEND="nr_cpus=1 $EXTRA"
FTP_PASSWORD=hunter2
"""
RHEL = """
KDUMP_KERNELVER=""
KDUMP_COMMANDLINE_REMOVE="hugepages quiet"
KDUMP_COMMANDLINE_APPEND="irqpoll nr_cpus=1 reset_devices rd.shell=0"
KEXEC_ARGS="-s"
KDUMP_IMG="vmlinuz"
KDUMP_STDLOGLVL=3
"""
SUSE = """
KDUMP_SAVEDIR="file:///var/crash"
KDUMP_DUMPLEVEL=31
KDUMP_DUMPFORMAT="lzo"
KDUMP_IMMEDIATE_REBOOT="yes"
KDUMP_CONTINUE_ON_ERROR="false"
KDUMP_KEEP_OLD_DUMPS="5"
KDUMP_NOTIFICATION_TO="root@example.org"
"""


def lines(imported: Imported) -> list[str]:
    return [line.text for line in imported.lines]


def messages(imported: Imported) -> str:
    return "\n".join(map(str, imported.problems))


def test_debian() -> None:
    imported = import_settings("/etc/default/kdump-tools", DEBIAN)
    assert imported.dialect is Dialect.DEBIAN
    assert lines(imported) == [
        "path /srv/crash",
        "failure_action poweroff",
        "core_collector makedumpfile -c -d 17",
        "keep_crashes 3",
    ]
    said = messages(imported)
    assert "/etc/default/kdump-tools:9: the value holds '$EXTRA" in said
    assert "hunter2" not in said + imported.to_text()
    assert len(imported.problems) == 2


def test_rhel() -> None:
    imported = import_settings("/etc/sysconfig/kdump", RHEL)
    assert imported.dialect is Dialect.RHEL
    assert lines(imported) == [
        "commandline_remove hugepages quiet",
        "nr_cpus 1",
        "commandline_append irqpoll reset_devices",
        "kexec_syscall kexec_file_load",
    ]
    assert [problem.line for problem in imported.problems] == [7]


def test_suse() -> None:
    imported = import_settings("/etc/sysconfig/kdump", SUSE)
    assert imported.dialect is Dialect.SUSE
    assert lines(imported) == [
        "path /var/crash",
        "final_action reboot",
        "failure_action shell",
        "keep_crashes 6",
        "core_collector makedumpfile -l -d 31",
    ]
    assert [problem.line for problem in imported.problems] == [8]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("KDUMP_SAVEDIR=/srv/dumps", "path /srv/dumps"),
        ("KDUMP_SAVEDIR=cifs://host/share", "'cifs:' is not a target"),
        ("KDUMP_SAVEDIR=ssh://me:secret@host/crash", "a password"),
        ("KDUMP_SAVEDIR=ssh://[fd00::1]:2222/crash", "ssh root@[fd00::1]:2222\npath /crash"),
        ("KDUMP_SAVEDIR=nfs://host/export", "nfs host:/export"),
        ("KDUMP_KEEP_OLD_DUMPS=-1", ""),
        ("KDUMP_KEEP_OLD_DUMPS=all", "'all' is not a number of dumps"),
        ("KDUMP_FREE_DISK_SIZE=64", "keep_free 64M"),
        ("KDUMP_NET_TIMEOUT=30", "deadline_network 30"),
        ("KDUMP_SAVEDIR=relative", "path must begin with a slash"),
        ("KDUMP_DUMPFORMAT=ELF", "the format 'ELF'"),
        ("KDUMP_DUMPFORMAT=snappy", "core_collector makedumpfile -p -d 31"),
        ("KDUMP_DUMPLEVEL=1", "core_collector makedumpfile -z -d 1"),
        ("KDUMP_DUMPLEVEL=99", "'core_collector makedumpfile -z -d 99' cannot be used"),
        ("KDUMP_SAVEDIR='/a\nfinal_action halt'", "a line break in the value"),
        ("KEXEC_OPTIONS='-a'", ""),
        ("KEXEC_OPTIONS='-s --mem-max=1G'", "of kexec's options"),
        ("KDUMP_CPUS=32", "nr_cpus 32"),
        ("KDUMP_COMMANDLINE_APPEND='elfcorehdr=1'", "'elfcorehdr=1' cannot be given to a capture kernel"),
        ("KDUMP_NEW_THING=1", "not a setting that kdumpd knows"),
    ],
)
def test_suse_details(text: str, wanted: str) -> None:
    imported = import_settings("f", text, Dialect.SUSE)
    said = "\n".join([*lines(imported), messages(imported)]).strip()
    assert wanted in said if wanted else not said
    assert "secret" not in messages(imported)


def test_the_last_assignment_counts_as_in_a_shell() -> None:
    imported = import_settings("f", "USE_KDUMP=1\nKDUMP_COREDIR=/a\nKDUMP_COREDIR=/b\n")
    assert lines(imported) == ["path /b"]


def test_what_is_written_is_read_back_without_a_complaint() -> None:
    for text in (DEBIAN, RHEL, SUSE):
        imported = import_settings("f", text)
        config = parse_config([("x", imported.to_text())])
        assert config.problems == ()
    assert config.path == "/var/crash"


def test_the_documentation_names_every_setting() -> None:
    text = (TOP / "docs/IMPORT.md").read_text()
    sections = dict(re.findall(r"^## [^\n]*\((\w+)\)\n(.*?)(?=^## |\Z)", text, re.M | re.S))
    for dialect, names in known_names().items():
        assert set(re.findall(r"`([A-Z][A-Z_]+)`", sections[dialect.value])) == names


NAMES = sorted({name for names in known_names().values() for name in names})


@given(
    st.lists(st.tuples(st.sampled_from(NAMES), st.text(max_size=40)), max_size=8),
    st.sampled_from([None, *Dialect]),
)
def test_hostile_values_never_become_other_lines(settings: list[tuple[str, str]], dialect: Dialect | None) -> None:
    text = "\n".join(f"{name}='{value}'" for name, value in settings)
    written = import_settings("f", text, dialect).to_text()
    assert parse_config([("x", written)]).problems == ()


@given(st.binary(max_size=300))
def test_hostile_bytes_end_in_a_file_that_can_be_read(data: bytes) -> None:
    written = import_settings("f", data.decode(errors="replace")).to_text()
    assert parse_config([("x", written)]).problems == ()
