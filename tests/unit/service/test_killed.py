# SPDX-License-Identifier: GPL-2.0-or-later
"""The service killed at each of its file operations, one after the other, and started again.

What a new service then says is compared with what the kernel really holds. The kernel and the builder die with the
service here; in production they are other processes and outlive it.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from engine_bench import Bench
from fake_machine import FakeMachine

_OPERATIONS = frozenset({"open", "os.rename", "os.link", "os.remove", "os.mkdir"})
_MOST = 400


def _kill_at(number: int) -> None:
    """From here on this process ends itself before its `number`-th operation that changes a file."""
    left = number

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal left
        if event in _OPERATIONS and (event != "open" or _writes(arguments)):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def _writes(arguments: tuple[object, ...]) -> bool:
    flags = arguments[2]
    return isinstance(flags, int) and flags & os.O_ACCMODE != os.O_RDONLY


def _run_until(number: int, work: Callable[[], object]) -> bool:
    """Does `work` in a child that is killed at its `number`-th operation; False when it ended before."""
    child = os.fork()
    if child == 0:
        try:
            _kill_at(number)
            work()
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


def _truth(bench: Bench) -> None:
    """What the service says is so."""
    status = bench.status
    held = bench.kernel.held()
    assert status.loaded == (held is not None)
    if status.state.rung.value == "loaded":
        assert held is not None
        record = json.loads((bench.machine.root / "run/kdumpd/loaded.json").read_text())
        assert held == {"initrd_sha256": record["initrd_sha256"], "cmdline": record["cmdline"]}
        assert record["image_id"] == status.image_id == bench.machine.image_id()


def _sweep(folder: Path, prepare: Callable[[Bench], None], act: Callable[[Bench], None]) -> int:
    """Kills `act` at each of its operations; after each, a new service has to come to the same end."""
    for number in range(1, _MOST):
        bench = Bench(FakeMachine(folder / str(number)))
        prepare(bench)
        if not _run_until(number, lambda bench=bench: act(bench)):
            return number
        armed_before = bench.kernel.held()
        fresh = _fresh(bench)
        settled = not (bench.machine.root / "run/kdumpd/loading.json").exists()
        bench.builder.builds = 0
        bench.kernel.calls.clear()
        bench.restart()
        bench.engine.first_status()
        _truth(bench)
        said = bench.rung
        bench.engine.check(patient=False)
        _truth(bench)
        assert bench.rung == "loaded", (number, bench.codes())
        if fresh:
            assert bench.builder.builds == 0, f"operation {number}: a needless build"
        if said == "loaded" and settled and armed_before is not None:
            assert bench.kernel.calls == [], f"operation {number}: a needless load"
    raise AssertionError("there is no end to it")


def _fresh(bench: Bench) -> bool:
    """True when the image on disk is what a build would make now."""
    bench.restart()
    bench.engine.first_status()
    codes = bench.codes()
    return not {"image-missing", "image-stale", "image-damaged"} & set(codes)


def _arm(bench: Bench) -> None:
    bench.engine.check()
    assert bench.rung == "loaded"


def test_killed_while_it_arms_a_fresh_machine(tmp_path: Path) -> None:
    assert _sweep(tmp_path, lambda bench: None, _arm) > 15


def test_killed_while_a_changed_configuration_is_taken_over(tmp_path: Path) -> None:
    """With on_unload report: an empty place that the dead service left behind is nobody's wish."""

    def prepare(bench: Bench) -> None:
        bench.machine.config("on_unload report\n")
        _arm(bench)
        bench.machine.config("on_unload report\nfinal_action halt\n")

    assert _sweep(tmp_path, prepare, _arm) > 15


def test_killed_while_only_the_command_line_changes(tmp_path: Path) -> None:
    def prepare(bench: Bench) -> None:
        _arm(bench)
        bench.machine.config("commandline_append quiet\n")

    assert _sweep(tmp_path, prepare, _arm) > 10


def test_killed_while_it_unloads_on_request(tmp_path: Path) -> None:
    """Either it was not done yet, and the machine stays armed; or it was, and stays so."""
    outcomes = set()
    for number in range(1, _MOST):
        bench = Bench(FakeMachine(tmp_path / str(number)))
        _arm(bench)
        if not _run_until(number, bench.engine.unload):
            break
        bench.restart()
        bench.engine.check(patient=False)
        _truth(bench)
        outcomes.add(bench.rung)
        held = (bench.machine.root / "run/kdumpd/held.json").exists()
        assert held or bench.rung == "loaded", number
    assert outcomes == {"loaded", "unloaded"}
