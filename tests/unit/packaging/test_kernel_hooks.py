# SPDX-License-Identifier: GPL-2.0-or-later
"""The hooks of package managers: they pass on what they hear, say nothing on stdout, and never fail."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parents[3]
HOOKS = TOP / "packaging" / "kernel"
CASES = [
    ("install.d/60-kdumpd.install", ("add", "6.1", "/boot/x", "/boot/vmlinuz-6.1"), "kernel-hook add 6.1"),
    ("install.d/60-kdumpd.install", ("remove", "6.1", "/boot/x"), "kernel-hook remove 6.1"),
    ("postinst.d/kdumpd", ("6.1", "/boot/vmlinuz-6.1"), "kernel-hook add 6.1"),
    ("postrm.d/kdumpd", ("6.1", "/boot/vmlinuz-6.1"), "kernel-hook remove 6.1"),
]


def run(hook: str, words: tuple[str, ...], path: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(HOOKS / hook), *words], capture_output=True, text=True, check=False, env={"PATH": f"{path}:/usr/bin:/bin"}
    )


def kdumpctl(folder: Path, status: int) -> Path:
    program = folder / "kdumpctl"
    program.write_text(f'#!/bin/sh\necho "$@" >{folder}/words\necho chatter\nexit {status}\n')
    program.chmod(0o755)
    return folder / "words"


@pytest.mark.parametrize(("hook", "words", "passed"), CASES)
def test_a_hook_passes_on_what_it_hears(hook: str, words: tuple[str, ...], passed: str, tmp_path: Path) -> None:
    said = kdumpctl(tmp_path, 0)
    done = run(hook, words, tmp_path)
    assert (done.returncode, done.stdout) == (0, "")
    assert said.read_text().strip() == passed


@pytest.mark.parametrize(("hook", "words", "passed"), CASES)
def test_no_kernel_fails_to_install_because_of_us(
    hook: str, words: tuple[str, ...], passed: str, tmp_path: Path
) -> None:
    del passed
    assert run(hook, words, tmp_path / "empty").returncode == 0
    kdumpctl(tmp_path, 1)
    done = run(hook, words, tmp_path)
    assert done.returncode == 0
    assert "kdumpd was not told of kernel 6.1" in done.stderr


def test_other_commands_of_kernel_install_mean_nothing(tmp_path: Path) -> None:
    said = kdumpctl(tmp_path, 0)
    assert run("install.d/60-kdumpd.install", ("inspect", "6.1"), tmp_path).returncode == 0
    assert not said.exists()
