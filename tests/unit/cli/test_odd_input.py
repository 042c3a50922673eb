# SPDX-License-Identifier: GPL-2.0-or-later
"""Odd command lines, files and surroundings: a sentence and an exit status, never a traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from ctl import TOP, kdumpctl

# Words, exit status, and what is said on standard error.
ODD = (
    ("frobnicate", 2, "there is no command 'frobnicate'"),
    ("--nonsense", 2, "'--nonsense' here"),
    ("status extra", 2, "'extra' here"),
    ("status --json=purple", 2, "--json: invalid choice"),
    ("status --root /nonexistent", 2, "there is no folder /nonexistent to look at"),
    ("list --root empty", 2, "there is no folder empty to look at"),
    ("check-config /nonexistent", 1, "cannot be read"),
    ("check-config folder", 1, "Is a directory"),
    ("check-config bytes", 1, "bytes:1: it is not UTF-8 text"),
    ("check-config zero", 1, "zero:1: a control character"),
    ("check-config loop", 1, "Too many levels of symbolic links"),
    ("check-config /dev/zero", 1, "too long for a file of settings"),
    ("check-config relative", 1, "relative:1: path must begin with a slash"),
    ("import-config folder", 1, "Is a directory"),
    ("import-config bytes", 1, "it is not UTF-8 text"),
    ("import-config words --root folder", 1, "words holds nothing that can be taken over"),
    ("reservation", 2, "required: ACTION"),
    ("reservation set", 2, "required: SIZE"),
    ("reservation set banana --root grub", 2, "'banana' is not a size"),
    ("reservation set 0 --root grub", 2, "asks for nothing"),
    ("reservation set 256 --root grub", 2, "too little for any kernel"),
    ("reservation set 4G --root grub", 2, "as much as the machine has (2048 MiB)"),
    ("reservation set 999999999999999999999999G --root grub", 2, "as much as the machine has"),
    ("reservation set 512M,low --root grub", 2, "needs a main area"),
    ("kernel-hook add", 2, "required: RELEASE"),
    ("kernel-hook add ../../etc/passwd", 1, "is not the name of a kernel release"),
    ("kernel-hook add 6.1 --root /proc", 1, "cannot be left"),
    ("info 99999999999999999999", 1, "No crash has been captured"),
    ("verify ../..", 1, "No crash has been captured"),
    ("decrypt /nonexistent", 1, "there is no file or folder"),
    ("decrypt bytes --identity folder", 1, "Is a directory"),
    ("load --root folder", 2, "a machine below a folder cannot be changed"),
    ("test --root folder --force", 2, "a machine below a folder cannot be crashed"),
    ("watch --root folder", 2, "there are no signals"),
    ("build", 2, "required: --kernel, --out"),
)
QUIET = ("status", "status --json", "list", "--help", "info --help", "show-config", "get-default-crashkernel")


@pytest.fixture
def odd(tmp_path: Path) -> Path:
    """A folder of files that are not what they should be, and of the root of a machine with GRUB."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "empty").touch()
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x80")
    (tmp_path / "zero").write_bytes(b"path /x\0\n")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "relative").write_text("path x\n")
    (tmp_path / "words").write_text("these are no settings\n")
    for name, text in (
        ("etc/default/grub", 'GRUB_CMDLINE_LINUX=""\n'),
        ("usr/sbin/update-grub", "#!/bin/sh\nexit 1\n"),
        ("proc/meminfo", f"MemTotal: {2 << 20} kB\n"),
    ):
        path = tmp_path / "grub" / name
        path.parent.mkdir(parents=True)
        path.write_text(text)
    (tmp_path / "grub/usr/sbin/update-grub").chmod(0o755)
    return tmp_path


def run(folder: Path, words: str, redirection: str = "") -> subprocess.CompletedProcess[str]:
    """kdumpctl by way of a shell, which redirects."""
    command = f'exec "$0" -m kdumpd.cli {words} {redirection}'
    # With Python's buffers, whoever runs the test: what stays in them is tried again at the end.
    environ = {**os.environ, "PYTHONPATH": str(TOP), "LC_ALL": "C.UTF-8", "PYTHONUNBUFFERED": ""}
    return subprocess.run(
        ["sh", "-c", command, sys.executable], cwd=folder, env=environ, capture_output=True, text=True, timeout=180
    )


@pytest.mark.parametrize(("words", "status", "said"), ODD)
def test_a_sentence_and_a_status(odd: Path, words: str, status: int, said: str) -> None:
    done = run(odd, words, "</dev/null")
    assert done.returncode == status, done.stderr
    assert said in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert "a fault in kdumpctl" not in done.stderr
    assert not (odd / "grub/etc/default/grub.d").exists(), "something was changed"


@pytest.mark.parametrize("words", QUIET)
def test_who_closed_the_output_gets_the_exit_status(odd: Path, words: str) -> None:
    expected = run(odd, f"{words} --root folder", "</dev/null").returncode
    for redirection in (">&-", ">&- 2>&-", ">&- 2>&- <&-", "<&-"):
        done = run(odd, f"{words} --root folder", redirection)
        assert done.returncode == expected, redirection
        assert "Traceback" not in done.stderr
        assert "fault" not in done.stderr


@pytest.mark.parametrize("words", [words for words in QUIET if words != "list"])
def test_what_cannot_be_printed_is_said(odd: Path, words: str) -> None:
    done = run(odd, f"{words} --root folder", ">/dev/full")
    assert (done.returncode, done.stderr) == (1, "kdumpctl: No space left on device\n")
    assert run(odd, f"{words} --root folder", ">/dev/full 2>&1").returncode == 1


def test_ranges_for_another_machine_are_set_with_a_word(odd: Path) -> None:
    done = run(odd, "reservation set 64G-:512M --dry-run --root grub")
    assert done.returncode == 0
    assert "crashkernel=64G-:512M" in done.stdout
    assert "The kernel reserves nothing for crashkernel=64G-:512M: it asks for nothing" in " ".join(done.stderr.split())


def test_a_reader_that_leaves_is_no_fault() -> None:
    done = run(TOP, "--help", "| true")
    assert "Traceback" not in done.stderr
    assert kdumpctl("--help").returncode == 0


def test_without_an_image_nothing_is_called_fresh(odd: Path) -> None:
    done = run(odd, "why-stale --root folder")
    assert (done.returncode, done.stdout) == (0, "There is no capture image yet, and so nothing that is out of date.\n")
