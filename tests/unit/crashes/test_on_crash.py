# SPDX-License-Identifier: GPL-2.0-or-later
"""Programs for a crash: in order, with their facts, within their time; one that fails stops no other."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from fake_machine import RELEASE, FakeMachine

from kdumpd.crashes import on_crash


def put(machine: FakeMachine, name: str, text: str, mode: int = 0o755) -> Path:
    machine.write(f"etc/kdumpd/on-crash.d/{name}", f"#!/bin/sh\n{text}\n")
    path = machine.root / f"etc/kdumpd/on-crash.d/{name}"
    path.chmod(mode)
    return path


def run(machine: FakeMachine, name: str = "a", seconds: float = 20) -> int:
    return on_crash.main(["--root", str(machine.root), "--seconds", str(seconds), "--", name])


def test_programs_learn_about_the_crash(machine: FakeMachine) -> None:
    folder = machine.crash("a", panic="Oops\x1b[31m\nBoom")
    said = machine.root / "said"
    put(machine, "20-second", f"echo second >>{said}")
    put(machine, "10-first", f"env | grep ^KDUMPD_ | sort >{said}")
    assert run(machine) == 0
    *facts, last = said.read_text().splitlines()
    assert last == "second"
    found = dict(line.removeprefix("KDUMPD_").split("=", 1) for line in facts)
    assert (found["CRASH"], found["PATH"], found["RESULT"]) == ("a", str(folder), "complete")
    assert (found["KERNEL"], found["VMCORE"]) == (RELEASE, str(folder / "vmcore"))
    assert found["PANIC"] == "Oops\N{REPLACEMENT CHARACTER}[31m\N{REPLACEMENT CHARACTER}Boom"


def test_a_failing_and_a_hanging_program_stop_no_other(machine: FakeMachine, capfd: pytest.CaptureFixture[str]) -> None:
    machine.crash("a")
    said = machine.root / "said"
    put(machine, "1-fails", "exit 3")
    put(machine, "2-hangs", "sleep 100 & sleep 100")
    put(machine, "3-broken", "").write_text("no program\n")
    put(machine, "4-works", f"touch {said}")
    start = time.monotonic()
    assert run(machine, seconds=3) == 1
    assert time.monotonic() - start < 60  # of the hundred that it sleeps
    assert said.exists()
    err = capfd.readouterr().err
    for words in ("1-fails failed with status 3", "2-hangs was ended", "3-broken cannot be run"):
        assert words in err


def test_what_is_not_to_be_run_is_not_run(machine: FakeMachine, capfd: pytest.CaptureFixture[str]) -> None:
    put(machine, "good", "true")
    for name in ("x~", ".hidden", "x.dpkg-old", "x.rpmsave", "x.bak"):
        put(machine, name, "true")
    put(machine, "not-executable", "true", 0o644)
    put(machine, "writable", "true", 0o775)
    assert [path.name for path in on_crash.programs(machine.root)] == ["good"]
    assert "writable is not run: others than root" in capfd.readouterr().err


@pytest.mark.parametrize("name", ["b", "../a", "..", "", "a/"])
def test_a_crash_that_is_not_there(machine: FakeMachine, name: str, capfd: pytest.CaptureFixture[str]) -> None:
    machine.crash("a")
    assert run(machine, name) == 1
    assert "There is no crash" in capfd.readouterr().err


def test_no_folder_is_no_error(machine: FakeMachine) -> None:
    machine.crash("a")
    assert run(machine) == 0
