# SPDX-License-Identifier: GPL-2.0-or-later
"""Real crashed memory, made by tests/vm/lab/vmcore.py, and what kdumpd-collect makes of it."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from lab import tools, vmcore

TOP = Path(__file__).resolve().parents[2]


def collect(*arguments: str | Path, expect: int = 0) -> subprocess.CompletedProcess[str]:
    """Runs kdumpd-collect as a user would and checks its exit status."""
    done = subprocess.run(
        ["/usr/bin/python3", "-m", "kdumpd.collector", *map(str, arguments)],
        cwd=TOP,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == expect, f"exit {done.returncode}\n{done.stdout}{done.stderr}"
    return done


def core_id(core: tuple[str, int]) -> str:
    """The name of a core in the names of tests."""
    kernel, levels = core
    return f"{kernel}-{levels}level"


def cores(wanted: Callable[[str, int], bool]) -> pytest.MarkDecorator:
    """Limits a test to the cores for which `wanted` (kernel, levels of page tables) holds."""
    chosen = [core for core in vmcore.CORES if wanted(*core)]
    return pytest.mark.parametrize("core", chosen, ids=core_id, indirect=True, scope="session")


# Debian's crash is built for the architecture that it runs on: drgn and libkdumpfile read arm64's dumps.
CRASH_READS = cores(lambda kernel, _: "arm64" not in kernel)
# The newest makedumpfile, 1.7.8, knows no arm64 with 52 bits of virtual addresses: test_judged_by_drgn.py.
MAKEDUMPFILE_READS = cores(lambda kernel, levels: "arm64" not in kernel or levels == 4)


@pytest.fixture(scope="session", params=vmcore.CORES, ids=core_id)
def core(request: pytest.FixtureRequest) -> vmcore.Vmcore:
    """Each of the raw vmcores."""
    kernel, levels = request.param
    return vmcore.raw_vmcore(kernel, levels=levels)


@pytest.fixture(scope="session")
def any_core() -> vmcore.Vmcore:
    """One vmcore, for tests to which the kernel does not matter."""
    return vmcore.raw_vmcore("6.1", levels=5)


# What is asked of crash, in one go: opening a dump takes it many seconds.
QUESTIONS = ("sys", "bt", "foreach bt", "ps", "log", "mod", "files", "kmem -i")


def answers(core: vmcore.Vmcore, dump: Path, questions: Sequence[str] = QUESTIONS) -> dict[str, str]:
    """What crash answers to each question, without the words that tell a cut dump from a whole one."""
    # The newest crash, 9.0.2, finds no module in 7.2, not even in the raw vmcore; older ones do not open it.
    asked = [question for question in questions if core.kernel != "7" or question != "mod"]
    marked = [line for question in asked for line in (f"!echo ==== {question}", question)]
    if core.kernel == "7":
        shown = tools.crash(core.vmlinux, dump, marked, "--no_modules", suite="forky")
    else:
        shown = tools.crash(core.vmlinux, dump, marked)
    shown = shown.replace(str(dump), "DUMP").replace("[PARTIAL DUMP] [INCOMPLETE]", "[PARTIAL DUMP]")
    parts = shown.split("==== ")[1:]
    return {question: part.removeprefix(f"{question}\n") for question, part in zip(asked, parts, strict=True)}


@pytest.fixture(scope="session")
def answered(core: vmcore.Vmcore, dump: Path) -> dict[str, str]:
    """The answers from the default dump."""
    return answers(core, dump)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All tests of one core in one process: what they share, dumps and sessions of crash, is made once."""
    for item in items:
        parameters = getattr(item, "callspec", None)
        if parameters is not None and "core" in parameters.params:
            item.add_marker(pytest.mark.xdist_group(core_id(parameters.params["core"])))


@pytest.fixture(scope="session")
def dump(core: vmcore.Vmcore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The dump that a user gets by default: level 31, zstd."""
    out = tmp_path_factory.mktemp("dump") / "vmcore"
    collect("-d", "31", "-z", core.path, out)
    return out
