# SPDX-License-Identifier: GPL-2.0-or-later
"""kdumpd.service.engine when loads and builds fail: the previous image comes back, and the reason is told."""

from __future__ import annotations

import errno
import json

import pytest
from bus_bench import wait
from engine_bench import Bench
from fake_machine import RELEASE, FakeKernel

from kdumpd.errors import BuildError, LoadError
from kdumpd.service import engine


@pytest.mark.parametrize("code", [errno.EADDRNOTAVAIL, errno.EKEYREJECTED, errno.ENOMEM])
def test_a_failing_load_brings_the_previous_pair_back(bench: Bench, code: int) -> None:
    bench.engine.check()
    first = bench.machine.image_id()
    bench.machine.config("final_action halt\n")
    bench.kernel.fail = [code, 0]
    bench.engine.check()
    assert bench.status.loaded
    assert bench.rung == "loaded-stale"
    assert {"load-failed", "old-image-loaded"} <= set(bench.codes())
    assert "the previous image is loaded again" in bench.status.last_error
    record = json.loads((bench.machine.root / "run/kdumpd/loaded.json").read_text())
    assert record["image_id"] == first
    assert first != bench.machine.image_id()


def test_a_failing_load_without_a_previous_pair(bench: Bench) -> None:
    bench.kernel.fail = [errno.ENOKEY]
    bench.engine.check()
    assert bench.rung == "unloaded"
    assert bench.codes()[0] == "load-failed"
    assert not bench.status.loaded
    assert "no key" in bench.status.last_error
    assert not (bench.machine.root / "run/kdumpd/loaded.json").exists()


def test_two_failing_loads_say_so(bench: Bench) -> None:
    bench.engine.check()
    bench.kernel.fail = [errno.ENOMEM, errno.ENOMEM]
    with pytest.raises(LoadError, match="could not be loaded again"):
        bench.engine.load()
    assert not bench.status.loaded
    assert bench.rung == "unloaded"


def test_after_a_failure_it_waits_and_a_person_does_not(bench: Bench) -> None:
    bench.kernel.fail = [errno.ENOMEM]
    bench.engine.check()
    bench.engine.check()
    assert len(bench.kernel.calls) == 1
    bench.engine.check(patient=False)
    assert len(bench.kernel.calls) == 2
    assert bench.rung == "loaded"
    assert bench.status.last_error == ""


def test_a_failing_build_still_loads_the_old_image(bench: Bench) -> None:
    bench.engine.check()
    bench.engine.unload()
    bench.machine.config("final_action halt\n")
    bench.builder.fail = ["The disk is full"]
    with pytest.raises(BuildError, match="disk is full"):
        bench.engine.load()
    assert bench.status.loaded
    assert bench.rung == "loaded-stale"
    assert {"build-failed", "image-stale"} <= set(bench.codes())


def test_a_failing_first_build(bench: Bench) -> None:
    bench.builder.fail = ["The disk is full"]
    bench.engine.check()
    assert bench.rung == "image-missing"
    assert bench.codes()[0] == "build-failed"
    assert bench.status.state.reasons[0].cure == "df -h /var/lib"
    assert bench.kernel.calls == []
    assert any("disk is full" in line for line in bench.lines())


@pytest.mark.parametrize("name", ["initrd", "image.json"])
def test_a_damaged_image_is_built_again(bench: Bench, name: str) -> None:
    bench.engine.check()
    bench.machine.crash_loaded(False)
    path = bench.machine.root / "var/lib/kdumpd" / RELEASE / name
    path.write_bytes(path.read_bytes()[:-10] + b"0123456789")
    bench.restart()
    bench.engine.first_status()
    assert bench.rung == "image-missing"
    assert bench.codes()[0] == "image-damaged"
    bench.engine.check()
    assert bench.rung == "loaded"
    assert bench.builder.builds == 2


def test_a_kernel_that_ignores_the_load_is_not_believed(bench: Bench) -> None:
    bench.engine.first_status()
    bench.kernel.__class__ = type("Liar", (FakeKernel,), {"__call__": lambda self, *_: 0})
    with pytest.raises(LoadError, match="yet says that none is loaded"):
        bench.engine.load()
    assert not bench.status.loaded
    assert bench.rung == "unloaded"


def test_what_the_kernel_will_never_take_is_not_tried_again_while_the_old_pair_is_loaded(bench: Bench) -> None:
    """Each attempt takes the loaded pair away for a moment."""
    bench.engine.check()
    bench.machine.config("final_action halt\n")
    bench.kernel.fail = [errno.EADDRNOTAVAIL, 0]
    bench.engine.check()
    calls = len(bench.kernel.calls)
    bench.engine.check(patient=False)
    assert len(bench.kernel.calls) == calls
    assert (bench.rung, bench.status.loaded) == ("loaded-stale", True)
    assert "load-failed" in bench.codes()
    # Something else to load, or a person: then it is.
    bench.machine.config("final_action poweroff\n")
    bench.engine.check(patient=False)
    assert bench.rung == "loaded"


def test_what_may_pass_is_tried_again(bench: Bench) -> None:
    bench.engine.check()
    bench.machine.config("final_action halt\n")
    bench.kernel.fail = [errno.ENOMEM, 0]
    bench.engine.check()
    bench.engine.check(patient=False)
    assert bench.rung == "loaded"


def test_into_an_empty_place_everything_is_tried_again(bench: Bench) -> None:
    bench.kernel.fail = [errno.EADDRNOTAVAIL]
    bench.engine.check()
    assert not bench.status.loaded
    bench.engine.check(patient=False)
    assert bench.rung == "loaded"


def test_what_a_person_asked_for_in_vain_is_tried_again_too(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing else may happen to the machine for a long time."""
    monkeypatch.setattr(engine, "_FIRST_RETRY_SECONDS", 0.3)
    bench.engine.check()
    bench.engine.unload()
    bench.kernel.fail = [errno.ENOMEM]
    bench.engine.start()
    try:
        with pytest.raises(LoadError):
            bench.engine.load()
        assert bench.rung == "unloaded"
        wait(lambda: bench.rung == "loaded", "the next attempt")
    finally:
        bench.engine.stop(5)


def test_a_check_whose_turn_it_was_not_is_made_up_for(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when whoever was at work is done at the very moment that the check gives up."""
    monkeypatch.setattr(engine, "_TURN_SECONDS", 0.05)
    bench.engine.start()
    try:
        with bench.engine._turn():
            bench.engine.check()
        assert bench.seen == []
        wait(lambda: bench.seen and bench.rung == "loaded", "the check")
    finally:
        bench.engine.stop(5)
