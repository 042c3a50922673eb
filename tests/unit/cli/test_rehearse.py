# SPDX-License-Identifier: GPL-2.0-or-later
"""kdumpctl rehearse where there is nothing to rehearse, or nothing to rehearse with. The real thing: tests/vm."""

from __future__ import annotations

import pytest
from ctl import kdumpctl, kdumpctl_as_nobody
from engine_bench import Bench
from fake_machine import RELEASE, FakeBuilder, FakeMachine


def rehearse(machine: FakeMachine, *words: str, **changes: str) -> tuple[int, str]:
    done = kdumpctl("rehearse", *words, f"--root={machine.root}", **changes)
    assert done.stdout == ""
    assert not (machine.root / "var/lib/kdumpd/rehearsal.json").exists()
    return done.returncode, done.stderr


def test_only_root_may(machine: FakeMachine) -> None:
    (machine.root / "run/kdumpd").mkdir(parents=True)
    done = kdumpctl_as_nobody(machine.root, "rehearse")
    assert done.returncode == 1
    assert "Only root may read the image" in done.stderr


def test_without_an_image(machine: FakeMachine) -> None:
    assert rehearse(machine) == (
        1,
        f"kdumpctl: There is no capture image for kernel {RELEASE} yet\n  kdumpctl rebuild\n",
    )


def test_what_is_not_what_would_be_loaded_is_not_rehearsed(machine: FakeMachine) -> None:
    bench = Bench(machine)
    bench.engine.load()
    machine.config("final_action halt\n")
    status, said = rehearse(machine)
    assert status == 1
    assert "is out of date: " in said
    assert "kdumpctl rebuild" in said


def test_a_damaged_image(machine: FakeMachine) -> None:
    Bench(machine).engine.load()
    (machine.root / "var/lib/kdumpd" / RELEASE / "initrd").write_bytes(b"x")
    status, said = rehearse(machine)
    assert status == 1
    assert "cannot be used: " in said


def test_an_architecture_without_a_scratch_machine(machine: FakeMachine) -> None:
    machine.write("proc/sys/kernel/arch", "s390x\n")
    FakeBuilder(machine).build(RELEASE)
    status, said = rehearse(machine)
    assert status == 1
    assert "kdumpd knows no scratch machine for s390x" in said


@pytest.mark.parametrize("words", [["--accel", "xen"], ["--accel"]])
def test_words_that_make_no_sense(words: list[str], machine: FakeMachine) -> None:
    assert rehearse(machine, *words)[0] == 2
