# SPDX-License-Identifier: GPL-2.0-or-later
"""kdumpctl without a service: what it prints, its exit statuses, and that nobody ever sees a traceback."""

from __future__ import annotations

import argparse
import io
import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest
from ctl import TOP, kdumpctl, kdumpctl_as_nobody
from engine_bench import Bench
from fake_machine import RELEASE, FakeMachine

from kdumpd.cli import crash_test, failure, output, status
from kdumpd.dumpfile.manifest import Result
from kdumpd.errors import KdumpError
from kdumpd.service.model import Code, Rung


def arm(machine: FakeMachine) -> None:
    """What the service would have done."""
    Bench(machine).engine.check()


@pytest.mark.parametrize("words", [(), ("status",)])
def test_status_of_a_machine_without_an_image(machine: FakeMachine, words: tuple[str, ...]) -> None:
    done = kdumpctl(f"--root={machine.root}", *words)
    assert done.returncode == 3
    lines = done.stdout.splitlines()
    assert lines[0].startswith("○ kdumpd: NOT ARMED: There is no capture image")
    assert "  → kdumpctl rebuild" in lines
    assert any(line.startswith("  ✓ memory      256 MiB reserved, a capture needs about 1") for line in lines)
    assert "does not answer" in lines[-1]
    assert max(map(len, lines)) <= 80


def test_status_of_an_armed_machine(machine: FakeMachine) -> None:
    arm(machine)
    done = kdumpctl("status", f"--root={machine.root}")
    assert done.returncode == 0
    assert done.stdout.startswith("● kdumpd: armed (loaded)\n")
    assert "✗" not in done.stdout
    assert "this image has not saved a crash yet" in done.stdout
    machine.crash("host-20260101T000000Z", image_id=machine.image_id())
    assert "✓ proven" in kdumpctl("status", f"--root={machine.root}").stdout


def test_status_as_json(machine: FakeMachine) -> None:
    arm(machine)
    done = kdumpctl("--json", "status", f"--root={machine.root}")
    facts = json.loads(done.stdout)
    assert done.stdout.count("\n") == 1
    assert facts["state"] == "loaded"
    assert facts["armed"] is True
    assert facts["service"] is False
    assert facts["reserved_bytes"] == 256 << 20
    assert [reason["code"] for reason in facts["reasons"]] == ["not-proven"]
    assert kdumpctl("status", "--json=pretty", f"--root={machine.root}").stdout.count("\n") > 10


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda machine: machine.reserve(None), "booted without crashkernel="),
        (lambda machine: machine.reserve("64M"), "64 MiB are reserved"),
        (lambda machine: machine.crash_loaded(None), "cannot load a capture kernel"),
        (lambda machine: machine.config("path nowhere\n"), "/etc/kdump.conf:1: path must"),
        (lambda machine: machine.config("ext4 LABEL=gone\n"), "LABEL=gone"),
        (lambda machine: (machine.root / f"boot/vmlinuz-{RELEASE}").unlink(), "has no image"),
        (lambda machine: machine.crash_loaded(True), "kdumpd did not load"),
        (lambda machine: machine.write("proc/sys/kernel/kexec_load_disabled", "1"), "kexec_load_disabled"),
    ],
)
def test_the_first_failing_check_is_the_headline(machine: FakeMachine, spoil: object, words: str) -> None:
    spoil(machine)  # type: ignore[operator]
    done = kdumpctl("status", f"--root={machine.root}")
    assert done.returncode == 3
    headline = re.sub(r"\s+", " ", done.stdout.split("  ✓")[0].split("  ✗")[0])
    assert words in headline
    assert "→" in headline
    assert "✗" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_an_empty_machine_still_gets_an_answer(tmp_path: Path) -> None:
    done = kdumpctl("status", f"--root={tmp_path}")
    assert done.returncode == 3
    assert "Traceback" not in done.stderr


def test_what_may_not_be_read_is_not_known(machine: FakeMachine) -> None:
    arm(machine)
    done = kdumpctl_as_nobody(machine.root, "status")
    assert done.returncode == 4, done.stdout + done.stderr
    assert "cannot be told" in done.stderr
    assert "sudo" in done.stderr


def test_every_reason_has_its_place_in_the_checklist() -> None:
    placed = {code for check in status._CHECKS for code in check.codes} | status._NOTES
    assert placed == {code.value for code in Code}
    assert list(status._LADDER) == [rung.value for rung in Rung]


def test_every_reason_of_a_check_is_shown(machine: FakeMachine) -> None:
    machine.config("path nowhere\nfinal_action dance\n")
    machine.write("proc/sys/kernel/kexec_load_disabled", "1")
    machine.crash_loaded(True)
    done = kdumpctl("status", f"--root={machine.root}")
    text = " ".join(done.stdout.split())
    facts = json.loads(kdumpctl("status", "--json", f"--root={machine.root}").stdout)
    assert len(facts["reasons"]) >= 5
    for reason in facts["reasons"]:
        assert " ".join(reason["sentence"].split()) in text
        assert " ".join(reason["cure"].split()) in text
    # Both lines of kdump.conf are mended in the same way: said once, below them.
    assert done.stdout.split("✗ kdump.conf")[1].split("target")[0].count("→") == 1
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_a_reason_that_only_a_newer_service_knows_is_shown() -> None:
    reason = {"code": "moon-too-full", "sentence": "The moon is full", "cure": "wait"}
    fields = {"state": "loaded", "armed": True, "image_id": "x", "activity": "", "release": "6.1", "image_path": "/x"}
    sizes = {"reserved_bytes": 1, "required_bytes": 1, "loaded_since_usec": 0}
    shown = status.lines(status.Report(fields={**fields, **sizes, "reasons": [reason]}, service=True))
    assert [line.strip() for line in shown[-2:]] == ["· note        The moon is full", "→ wait"]


def test_list(machine: FakeMachine) -> None:
    machine.crash("host-20260101T000000Z", crash_time_usec=1_767_225_600_000_000)
    cut = machine.crash("host-20260102T000000Z", started_usec=0)
    (cut / "manifest.json").unlink()
    done = kdumpctl("list", f"--root={machine.root}")
    assert done.returncode == 0
    header, newest, oldest = done.stdout.splitlines()
    assert header.split() == ["#", "TIME", "KERNEL", "RESULT", "SIZE", "TOOK", "PANIC"]
    assert "interrupted" in newest
    assert oldest.split()[:6] == ["2", "2026-01-01", "00:00", RELEASE, "complete", "4.0K"]
    assert "8s" in oldest
    assert "sysrq" in oldest
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_list_as_json(machine: FakeMachine) -> None:
    machine.crash("b", crash_time_usec=2, image_id="x")
    machine.crash("a", crash_time_usec=1, result=Result.INCOMPLETE, reason="disk full")
    first, second = json.loads(kdumpctl("list", "--json", f"--root={machine.root}").stdout)
    assert (first["name"], first["result"], first["image_id"]) == ("b", "complete", "x")
    assert (second["name"], second["result"], second["problem"]) == ("a", "incomplete", "disk full")
    assert second["dump_bytes"] == 4104


def test_no_crash(machine: FakeMachine) -> None:
    done = kdumpctl("list", f"--root={machine.root}")
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "No crashes.\n")
    assert json.loads(kdumpctl("list", "--json", f"--root={machine.root}").stdout) == []
    done = kdumpctl("info", f"--root={machine.root}")
    assert (done.returncode, done.stderr) == (1, "kdumpctl: No crash has been captured yet\n")


@pytest.mark.parametrize("words", [(), ("last",), ("1",), ("20260102",), ("host-20260102T000000Z",)])
def test_info(machine: FakeMachine, words: tuple[str, ...]) -> None:
    machine.crash("host-20260101T000000Z")
    machine.crash("host-20260102T000000Z", crash_time_usec=1_767_312_000_000_000, pages={"zero": 5}, notes=("a note",))
    done = kdumpctl("info", *words, f"--root={machine.root}")
    assert done.returncode == 0
    pairs = dict(line.strip().split(": ", 1) for line in done.stdout.splitlines())
    assert pairs["Crash"] == "host-20260102T000000Z"
    assert pairs["Result"] == "complete"
    assert pairs["Panic"] == "Kernel panic - not syncing: sysrq triggered crash"
    assert pairs["Kernel"] == RELEASE
    assert pairs["Dump"] == "4.0K (4104 bytes)"
    assert pairs["Pages"] == "zero 5"
    assert pairs["Note"] == "a note"
    assert "None" not in done.stdout


def test_info_of_what_is_not_there(machine: FakeMachine) -> None:
    machine.crash("a")
    done = kdumpctl("info", "zzz", f"--root={machine.root}")
    assert done.returncode == 1
    assert done.stderr == "kdumpctl: There is no crash 'zzz'\n  see: kdumpctl list\n"


def test_hostile_manifests_print_no_control_characters(machine: FakeMachine) -> None:
    machine.crash(
        "a\x1b[31mb", panic="\x1b]0;gotcha\x07\r\npanic", kernel="\x1b[2J" * 20, notes=("\x9b1m",), hostname="\n"
    )
    for words in (("list",), ("info",), ("list", "--json"), ("info", "--json")):
        done = kdumpctl(*words, f"--root={machine.root}")
        assert done.returncode == 0, done.stderr
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", done.stdout)


def test_a_target_that_is_not_mounted(machine: FakeMachine) -> None:
    machine.config("ext4 /dev/nvme0n1\n")
    machine.write("proc/self/mountinfo", "1 1 0:1 / / rw - tmpfs tmpfs rw\n")
    done = kdumpctl("list", f"--root={machine.root}")
    assert done.returncode == 1
    assert "is not mounted" in done.stderr
    assert "\n  mount it" in done.stderr


@pytest.mark.parametrize(
    "words", [("load",), ("unload",), ("reload",), ("rebuild",), ("start",), ("stop",), ("restart",)]
)
def test_without_a_service_nothing_can_be_changed(words: tuple[str, ...]) -> None:
    done = kdumpctl(*words)
    assert done.returncode == 1
    assert done.stderr.startswith("kdumpctl: The service kdumpd does not answer")
    assert "systemctl start kdumpd" in done.stderr
    assert "Traceback" not in done.stderr


def test_without_the_libraries_of_the_bus_the_machine_is_still_looked_at(tmp_path: Path) -> None:
    (tmp_path / "gi.py").write_text("raise ModuleNotFoundError('no gi', name='gi')")
    path = {"PYTHONPATH": f"{tmp_path}:{TOP}"}
    assert kdumpctl("status", **path).stdout == kdumpctl("status").stdout
    done = kdumpctl("load", **path)
    assert (done.returncode, done.stderr.splitlines()) == (
        1,
        ["kdumpctl: The service kdumpd cannot be asked: gi is not installed", "  apt install python3-gi"],
    )


@pytest.mark.parametrize(
    "words", [("frobnicate",), ("--frobnicate",), ("info", "a", "b"), ("--json=xml",), ("load", "--root=/tmp")]
)
def test_wrong_words_end_with_2(words: tuple[str, ...]) -> None:
    done = kdumpctl(*words)
    assert done.returncode == 2
    assert done.stdout == ""
    assert "kdumpctl" in done.stderr


def test_version_and_help() -> None:
    assert kdumpctl("--version").stdout.startswith("kdumpctl 0.")
    text = kdumpctl("--help").stdout
    for word in ("status", "list", "info", "load", "unload", "reload", "rebuild", "kdumpctl(8)"):
        assert word in text


def test_a_closed_pipe_is_no_error_to_complain_about(machine: FakeMachine) -> None:
    machine.crash("a")
    read, write = os.pipe()
    os.close(read)
    environ = {**os.environ, "PYTHONPATH": str(TOP)}
    words = [sys.executable, "-m", "kdumpd.cli", "list", f"--root={machine.root}"]
    done = subprocess.run(words, stdout=write, stderr=subprocess.PIPE, text=True, check=False, env=environ)
    os.close(write)
    assert done.stderr == ""


def test_plain_terminals_get_plain_signs(machine: FakeMachine) -> None:
    done = kdumpctl("status", f"--root={machine.root}", LC_ALL="C", PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert done.returncode == 3, done.stderr
    assert done.stdout.isascii()


@pytest.mark.parametrize(
    ("error", "lines", "status"),
    [
        (KdumpError("It broke", hint="mend it"), ["kdumpctl: It broke", "  mend it"], 1),
        (KdumpError("It\x1b broke"), ["kdumpctl: It� broke"], 1),
        (FileNotFoundError(2, "x", "/etc/y"), ["kdumpctl: /etc/y: No such file or directory"], 1),
        (PermissionError(13, "x"), ["kdumpctl: Permission denied"], 1),
    ],
)
def test_errors_become_sentences(error: Exception, lines: list[str], status: int) -> None:
    assert failure.sentences(error) == lines
    assert failure.report(error) == status


def test_a_fault_of_our_own_asks_for_a_report() -> None:
    lines = failure.sentences(ZeroDivisionError("division by zero"))
    assert "a fault in kdumpctl itself" in lines[0]
    assert failure.report(KeyboardInterrupt()) == 130


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (None, "-"),
        (0, "0B"),
        (1023, "1023B"),
        (1024, "1.0K"),
        (30_094_131, "28.7M"),
        (1 << 40, "1.0T"),
        (1 << 70, "1024.0E"),
    ],
)
def test_sizes(size: int | None, text: str) -> None:
    assert output.size(size) == text


@pytest.mark.parametrize(
    ("usec", "text"), [(None, "-"), (0, "0s"), (59_999_999, "59s"), (125_000_000, "2m05s"), (3_720_000_000, "1h02m")]
)
def test_durations(usec: int | None, text: str) -> None:
    assert output.duration(usec) == text


def test_absurd_times_are_no_error() -> None:
    assert output.moment(1 << 70) == "-"


def test_verify(machine: FakeMachine) -> None:
    folder = machine.crash("a")
    done = kdumpctl("verify", f"--root={machine.root}")
    assert done.returncode == 1
    assert "its checksum differs" in done.stdout
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["dump"]["sha256"] = None
    (folder / "manifest.json").write_text(json.dumps(manifest))
    facts = json.loads(kdumpctl("verify", "a", "--json", f"--root={machine.root}").stdout)
    assert facts == {"name": "a", "whole": True, "problem": None}


@pytest.mark.parametrize(("armed", "force", "words"), [(False, True, "not armed"), (True, False, "Nothing was done")])
def test_a_machine_is_not_crashed_without_need_or_asking(
    armed: bool, force: bool, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(status, "read", lambda root: status.Report(fields={"armed": armed}, service=False))
    monkeypatch.setattr(crash_test, "leave_tag", lambda *_: pytest.fail("it would have been crashed"))
    monkeypatch.setattr("sys.stdin", io.StringIO("yes\n"))
    with pytest.raises(KdumpError, match=words):
        crash_test.crash(argparse.Namespace(root=Path("/"), force=force))
    assert kdumpctl("test", "--force", "--root=/tmp").returncode == 2


@pytest.mark.parametrize(
    ("changes", "coloured"),
    [({}, True), ({"NO_COLOR": "1"}, False), ({"NO_COLOR": ""}, True), ({"TERM": "dumb"}, False)],
)
def test_colour_is_for_terminals_that_want_it(machine: FakeMachine, changes: dict[str, str], coloured: bool) -> None:
    main, other = pty.openpty()
    environ = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(TOP), "LC_ALL": "C.UTF-8", "TERM": "xterm", **changes}
    words = [sys.executable, "-m", "kdumpd.cli", "status", f"--root={machine.root}"]
    subprocess.run(words, stdout=other, stderr=other, check=False, env=environ, timeout=180)
    os.close(other)
    shown = os.read(main, 65536).decode()
    os.close(main)
    assert "NOT ARMED" in shown
    assert ("\x1b[31m" in shown) == coloured


@pytest.mark.parametrize(
    "words",
    [
        ("status",), ("why-stale",), ("list",), ("estimate",), ("showmem",), ("reservation", "show"),
        ("get-default-crashkernel",), ("show-config",), ("verify",),
    ],
)  # fmt: skip
def test_what_is_shown_fits_80_columns_and_changes_nothing(machine: FakeMachine, words: tuple[str, ...]) -> None:
    machine.crash("a-host-with-a-rather-long-name-20260101T000000Z", kernel="6.12.99+deb13-cloud-amd64-unsigned" * 2)

    def files() -> dict[str, int]:
        return {str(path): path.lstat().st_mtime_ns for path in machine.root.rglob("*")}

    before = files()
    done = kdumpctl(*words, f"--root={machine.root}")
    assert done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert json.loads(kdumpctl(*words, "--json", f"--root={machine.root}").stdout) is not None
    assert files() == before


@pytest.mark.parametrize(
    ("crash", "outcome", "words"),
    [("", "missing", "no dump came"), ("host-1", "complete", "the dump is host-1 (complete)")],
)
def test_status_says_what_became_of_the_last_test(machine: FakeMachine, crash: str, outcome: str, words: str) -> None:
    test = {"id": "ab", "time_usec": 1_767_225_600_000_000, "outcome": outcome, "crash": crash}
    machine.write("var/lib/kdumpd/test.json", json.dumps(test))
    text = kdumpctl("status", f"--root={machine.root}").stdout
    assert f"· test crashed on request 2026-01-01 00:00: {words} " in " ".join(text.split())
    facts = json.loads(kdumpctl("status", "--json", f"--root={machine.root}").stdout)
    assert facts["last_test"] == {name: value for name, value in test.items() if value}
    machine.write("var/lib/kdumpd/test.json", '{"id": 5}')
    assert "on request" not in kdumpctl("status", f"--root={machine.root}").stdout
