# SPDX-License-Identifier: GPL-2.0-or-later
"""crash(8), drgn and libkdumpfile open our dumps, find the same there, and find the same in makedumpfile's."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

import pytest
from conftest import CRASH_READS, MAKEDUMPFILE_READS, answers, collect, cores
from lab import makedumpfile, pages, tools
from lab.aptroot import run
from lab.vmcore import Vmcore


@pytest.fixture(scope="module")
def vmlinux(core: Vmcore) -> Path:
    return core.vmlinux


@pytest.fixture(scope="module")
def shown(answered: dict[str, str]) -> str:
    return "".join(answered.values())


@pytest.fixture(scope="module")
def seen_by_drgn(dump: Path, vmlinux: Path) -> dict[str, Any]:
    found: dict[str, Any] = tools.read_with("drgn", dump, vmlinux)
    return found


@CRASH_READS
def test_crash_shows_panic_task_and_backtrace(shown: str, core: Vmcore) -> None:
    assert re.search(r"PANIC: .*Kernel panic - not syncing: sysrq triggered crash", shown)
    assert f"RELEASE: {core.release}" in shown
    assert "sysrq_handle_crash" in shown
    assert re.search(r'COMMAND: "(sh|bash)"', shown)


@CRASH_READS
def test_crash_shows_processes_and_log(shown: str, core: Vmcore) -> None:
    assert re.search(r"\s1\s+0\s+\d+\s+[0-9a-f]+\s.*(systemd|crash)", shown)
    assert str(core.workload_pid) in shown.split()
    assert core.marker in shown


@cores(lambda kernel, _: kernel != "7" and "arm64" not in kernel)
def test_crash_finds_the_same_in_makedumpfiles_dump(answered: dict[str, str], core: Vmcore, tmp_path: Path) -> None:
    theirs = tmp_path / "vmcore"
    makedumpfile.filtered(core, theirs, "-z", "-d", "31")
    assert answers(core, theirs) == answered


@cores(lambda kernel, _: kernel == "7")
def test_crash_finds_the_same_in_the_raw_vmcore(answered: dict[str, str], core: Vmcore) -> None:
    """makedumpfile 1.7.8 leaves so much of 7.2's slabs out that crash does not open its dump."""
    whole = {question: text.replace("  [PARTIAL DUMP]", "") for question, text in answered.items()}
    assert answers(core, core.path) == whole


def test_drgn_reads_name_tasks_and_trace(seen_by_drgn: dict[str, Any], core: Vmcore) -> None:
    assert seen_by_drgn["release"] == core.release
    assert seen_by_drgn["machine"] == {"amd64": "x86_64", "arm64": "aarch64"}[core.architecture]
    tasks = dict(seen_by_drgn["tasks"])
    assert tasks[core.workload_pid] == "workload"
    assert tasks[seen_by_drgn["panic_pid"]] in ("sh", "bash")
    assert "sysrq_handle_crash" in seen_by_drgn["panic_trace"]


@CRASH_READS
def test_drgn_finds_the_processes_that_crash_finds(seen_by_drgn: dict[str, Any], shown: str) -> None:
    # Of "ps": PID PPID CPU TASK ST %MEM VSZ RSS COMM, with ">" before what runs. The idle tasks share the pid 0.
    line = re.compile(r"^[> ] +(\d+) +\d+ +\d+ +[0-9a-f]{16} ", re.MULTILINE)
    assert {int(pid) for pid in line.findall(shown)} - {0} == {pid for pid, _ in seen_by_drgn["tasks"]} - {0}


def test_drgn_finds_the_log_that_we_extract(seen_by_drgn: dict[str, Any], core: Vmcore, tmp_path: Path) -> None:
    collect("--dump-dmesg", core.path, tmp_path / "log")
    stamp = re.compile(r"^\[ *\d+\.\d+\] (\[ *[TC]\d+\] )?")
    ours = [stamp.sub("", line).strip() for line in (tmp_path / "log").read_text().splitlines()]
    theirs = [line.strip() for record in seen_by_drgn["log"] for line in record.split("\n")]
    assert ours == theirs
    assert any(core.marker in line for line in ours)


def test_libkdumpfile_reads_every_page(dump: Path, core: Vmcore) -> None:
    with pages.Dump(dump) as read:
        chosen = list(range(0, len(read.pfns), max(1, len(read.pfns) // 500)))
        wanted = {str(read.pfns[index]): hashlib.sha256(read.page(index)).hexdigest() for index in chosen}
    found = tools.read_with("kdumpfile", dump, *wanted)
    assert (found["format"], found["release"]) == ("diskdump", core.release)
    assert found["machine"] == {"amd64": "x86_64", "arm64": "aarch64"}[core.architecture]
    assert found["pages"] == wanted


def test_file_knows_the_dump(dump: Path, core: Vmcore) -> None:
    described = run(["file", "--brief", str(dump)], timeout=60)
    assert described.startswith("Kdump compressed dump v6, system Linux")
    assert core.release in described


@MAKEDUMPFILE_READS
def test_log_is_the_one_that_makedumpfile_extracts(core: Vmcore, tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    collect("--dump-dmesg", core.path, ours)
    makedumpfile.filtered(core, theirs, "--dump-dmesg")
    # makedumpfile pads the caller to 8 columns, the kernel itself and dmesg(1) to 6; continuation lines follow suit.
    padding = re.compile(r"(?<=\] \[) +|^ +", re.MULTILINE)
    mine, other = (padding.sub("", path.read_text()).splitlines() for path in (ours, theirs))
    assert mine == other
    assert sum(core.marker in line for line in mine) >= 1
