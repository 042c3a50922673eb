# SPDX-License-Identifier: GPL-2.0-or-later
"""kdumpd.service.engine over a machine that cannot be armed as it is: what is missing, and what it says."""

from __future__ import annotations

import pytest
from engine_bench import Bench
from fake_machine import RELEASE, FakeMachine

from kdumpd.errors import (
    LoadError,
    NotReservedError,
    UnsupportedError,
)


def test_an_unload_that_cannot_be_noted_is_not_begun(bench: Bench) -> None:
    bench.engine.check()
    (bench.machine.root / "run/kdumpd/held.json").mkdir()
    with pytest.raises(LoadError, match="cannot be noted"):
        bench.engine.unload()
    assert bench.rung == "loaded"
    assert bench.status.loaded


def test_without_a_reservation(machine: FakeMachine) -> None:
    machine.reserve(None)
    bench = Bench(machine)
    bench.engine.check()
    assert bench.rung == "not-reserved"
    assert bench.codes()[0] == "crashkernel-missing"
    assert bench.builder.builds == 0
    with pytest.raises(NotReservedError, match="without crashkernel="):
        bench.engine.load()
    machine.reserve("300G", 0)
    bench.engine.check()
    assert bench.codes()[0] == "crashkernel-ignored"


def test_without_crash_kexec(machine: FakeMachine) -> None:
    machine.crash_loaded(None)
    bench = Bench(machine)
    bench.engine.check()
    assert bench.rung == "unsupported"
    with pytest.raises(UnsupportedError):
        bench.engine.load()
    machine.crash_loaded(False)
    machine.write("proc/sys/kernel/arch", "vax\n")
    bench.engine.check()
    assert bench.codes()[0] == "arch-unsupported"


@pytest.mark.parametrize(("size", "fits"), [("256M", True), ("192M", True), ("160M", True), ("64M", False)])
def test_which_reservations_are_enough(machine: FakeMachine, size: str, fits: bool) -> None:
    machine.reserve(size)
    bench = Bench(machine)
    bench.engine.check()
    assert bench.rung == ("loaded" if fits else "reserved-too-small")
    if not fits:
        reason = bench.status.state.reasons[0]
        assert reason.sentence.startswith("64 MiB are reserved")
        assert "needs about 1" in reason.sentence
        # An attempt beats none, but it is not called armed.
        assert bench.status.loaded


def test_switched_off_by_sysctl(machine: FakeMachine) -> None:
    machine.write("proc/sys/kernel/kexec_load_disabled", "1\n")
    bench = Bench(machine)
    bench.engine.check()
    assert bench.rung == "unloaded"
    assert bench.codes()[0] == "loading-disabled"
    assert bench.kernel.calls == []
    with pytest.raises(LoadError, match="kexec_load_disabled"):
        bench.engine.load()


def test_switched_off_while_loaded(bench: Bench) -> None:
    bench.engine.check()
    bench.machine.write("proc/sys/kernel/kexec_load_disabled", "1\n")
    bench.engine.check()
    assert bench.rung == "loaded"
    for action in (bench.engine.load, bench.engine.reload):
        with pytest.raises(LoadError, match="kexec_load_disabled"):
            action()
    with pytest.raises(LoadError, match="kexec_load_disabled"):
        bench.engine.unload()
    assert bench.status.loaded
    assert bench.rung == "loaded"


def test_a_missing_kernel_file(machine: FakeMachine) -> None:
    (machine.root / f"boot/vmlinuz-{RELEASE}").unlink()
    bench = Bench(machine)
    bench.engine.check()
    assert bench.rung == "image-missing"
    assert "kernel-not-found" in bench.codes()


def test_a_target_that_is_gone(bench: Bench) -> None:
    bench.engine.check()
    bench.machine.config("ext4 UUID=ffffffff-0000-4000-8000-000000000000\n")
    bench.engine.check()
    assert bench.status.loaded
    assert "target-unusable" in bench.codes()
    assert bench.builder.builds == 1


def test_a_run_folder_that_cannot_be_written_is_said(bench: Bench) -> None:
    run = bench.machine.root / "run/kdumpd"
    run.rmdir()
    run.write_text("")
    with pytest.raises(LoadError, match="cannot be noted"):
        bench.engine.load()
    assert bench.kernel.calls == []


def test_processors_that_do_not_fit_are_said(bench: Bench) -> None:
    bench.machine.write("sys/devices/system/cpu/present", "0-63\n")
    bench.engine.check()
    assert "nr_cpus=4" in bench.kernel.calls[-1][0]
    bench.machine.config("nr_cpus 32\n")
    bench.engine.check()
    assert "nr_cpus=32" in bench.kernel.calls[-1][0]
    assert (bench.rung, bench.codes()[0]) == ("reserved-too-small", "reservation-too-small")
