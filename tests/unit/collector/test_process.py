# SPDX-License-Identifier: GPL-2.0-or-later
"""The process of its own that the collector is: what it does not load, and how it ends."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from fake_kernel import OLD, FakeKernel

TOP = Path(__file__).resolve().parents[3]
PYTHON = "/usr/bin/python3"


def run(*words: str, stdout: int | None = subprocess.PIPE) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, cwd=TOP, stdout=stdout, stderr=subprocess.PIPE, text=True, timeout=180, check=False)


def test_numpy_comes_without_what_nobody_calls() -> None:
    code = (
        "import sys; from kdumpd.collector.lean import without_unused_parts; without_unused_parts()\n"
        "from kdumpd.collector.verbs import dump, memusage, split\n"
        "import numpy; print(*sorted(sys.modules))"
    )
    loaded = run(PYTHON, "-c", code).stdout.split()
    assert "numpy.core.multiarray" in loaded or "numpy._core.multiarray" in loaded
    for name in (
        "numpy.random.mtrand",
        "numpy.ma.core",
        "numpy.linalg.linalg",
        "numpy.typing",
        "paramiko",
        "cryptography",
    ):
        assert name not in loaded


def test_nothing_is_taken_from_a_process_that_has_numpy_already() -> None:
    code = "import numpy; from kdumpd.collector.lean import *; without_unused_parts(); print(numpy.random.default_rng)"
    assert "function default_rng" in run(PYTHON, "-c", code).stdout


def test_what_is_hardly_ever_used_waits_until_it_is() -> None:
    code = (
        "import sys; from kdumpd.collector.lean import without_unused_parts; without_unused_parts()\n"
        "import kdumpd.collector.capture, ast, inspect; print('dis' in sys.modules, '_ast' in sys.modules)\n"
        "print(inspect.signature(run := lambda one, *, two=2: one), 'dis' in sys.modules, ast.literal_eval('[3]'))\n"
        "import inspect; print(inspect.isfunction(run), sys.modules['inspect'] is inspect)"
    )
    said = run(PYTHON, "-c", code).stdout.splitlines()
    assert said == ["False False", "(one, *, two=2) True [3]", "True True"]


def test_status_and_output_get_out() -> None:
    done = run(PYTHON, "-m", "kdumpd.collector", "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("kdumpd-collect ")
    done = run(PYTHON, "-m", "kdumpd.collector", "-d", "99", "a", "b")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("kdumpd-collect: ")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--help", "the output: No space left on device"),
        ("--version", "the output: No space left on device"),
        ("--dump-dmesg nothing --json", ""),
        ("--dump-dmesg nothing", "nothing cannot be opened: No such file or directory"),
    ],
)
def test_output_that_cannot_be_written_is_no_success(words: str, said: str) -> None:
    """With Python's buffers, whoever runs the test: what stays in them is tried again at the end."""
    command = f'exec "$0" -m kdumpd.collector {words} >/dev/full'
    done = run("env", "-u", "PYTHONUNBUFFERED", "sh", "-c", command, PYTHON)
    assert done.returncode == 1
    assert done.stderr == (f"kdumpd-collect: {said}\n" if said else done.stderr)
    assert "Exception" not in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("redirection", [">&-", ">&- 2>&-", "| true"])
def test_who_wants_no_output_gets_none(redirection: str) -> None:
    done = run("sh", "-c", f'"$0" -m kdumpd.collector --help {redirection}', PYTHON)
    assert done.returncode == 0
    assert "Traceback" not in done.stderr
    assert "fault" not in done.stderr


@pytest.mark.parametrize("redirection", [">&-", ">&- <&-", ">&- 2>&- <&-"])
def test_closed_streams_are_no_place_for_a_dump(tmp_path: Path, redirection: str) -> None:
    """Whatever is opened first gets the number of a stream that is closed."""
    core = FakeKernel(OLD).write(tmp_path / "core")
    command = f'"$0" -m kdumpd.collector --num-threads 2 -z -d 31 "$1" "$2" {redirection}'
    done = run("sh", "-c", command, PYTHON, str(core), str(tmp_path / "dump"))
    assert done.returncode == 0
    assert "ended" not in done.stderr
    assert run(PYTHON, "-m", "kdumpd.collector", "--verify", str(tmp_path / "dump")).returncode == 0
    stream = run("sh", "-c", f'"$0" -m kdumpd.collector -F "$1" {redirection}', PYTHON, str(core))
    assert stream.returncode == 2
    assert "2>" in redirection or "standard output is closed" in stream.stderr
