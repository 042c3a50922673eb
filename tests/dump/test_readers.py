# SPDX-License-Identifier: GPL-2.0-or-later
"""crash(8) with the kernel's debug symbols opens our dumps and finds what it finds in makedumpfile's."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from conftest import collect
from lab import tools, vmcore
from lab.aptroot import run
from lab.vmcore import Vmcore

COMMANDS = ["sys", "bt", "foreach bt", "ps", "log", "mod", "kmem -i", "files"]


@pytest.fixture(scope="module")
def vmlinux(core: Vmcore) -> Path:
    return vmcore.debug_symbols(core.release)


def session(vmlinux: Path, dump: Path) -> str:
    """What crash prints for all commands in one go (opening a dump takes it many seconds)."""
    return tools.crash(vmlinux, dump, COMMANDS).replace(str(dump), "DUMP")


@pytest.fixture(scope="module")
def shown(dump: Path, vmlinux: Path) -> str:
    return session(vmlinux, dump)


def test_crash_shows_panic_task_and_backtrace(shown: str, core: Vmcore) -> None:
    assert re.search(r"PANIC: .*Kernel panic - not syncing: sysrq triggered crash", shown)
    assert f"RELEASE: {core.release}" in shown
    assert "sysrq_handle_crash" in shown
    assert re.search(r'COMMAND: "(sh|bash)"', shown)


def test_crash_shows_processes_and_log(shown: str, core: Vmcore) -> None:
    assert re.search(r"\s1\s+0\s+\d+\s+[0-9a-f]+\s.*systemd", shown)
    assert str(core.workload_pid) in shown.split()
    assert core.marker in shown


def test_crash_finds_the_same_in_makedumpfiles_dump(shown: str, vmlinux: Path, core: Vmcore, tmp_path: Path) -> None:
    theirs = tmp_path / "vmcore"
    run([*tools.program("makedumpfile"), "-z", "-d", "31", str(core.path), str(theirs)], timeout=300)
    assert session(vmlinux, theirs) == shown


def test_file_knows_the_dump(dump: Path, core: Vmcore) -> None:
    described = run(["file", "--brief", str(dump)], timeout=60)
    assert described.startswith("Kdump compressed dump v6, system Linux")
    assert core.release in described


def test_log_is_the_one_that_makedumpfile_extracts(core: Vmcore, tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    collect("--dump-dmesg", core.path, ours)
    run([*tools.program("makedumpfile"), "--dump-dmesg", str(core.path), str(theirs)], timeout=60)
    # makedumpfile pads the caller to 8 columns, the kernel itself and dmesg(1) to 6; continuation lines follow suit.
    padding = re.compile(r"(?<=\] \[) +|^ +", re.MULTILINE)
    mine, other = (padding.sub("", path.read_text()).splitlines() for path in (ours, theirs))
    assert mine == other
    assert sum(core.marker in line for line in mine) >= 1
