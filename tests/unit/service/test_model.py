# SPDX-License-Identifier: GPL-2.0-or-later
"""Random sequences of events upon a machine of files: the published status is never wrong once it is quiet."""

from __future__ import annotations

import contextlib
import errno
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from engine_bench import Bench
from fake_machine import RELEASE, FakeMachine

from kdumpd.errors import KdumpError

SEQUENCES = 40
STEPS = 25
CONFIGS = ("", "final_action halt\n", "core_collector makedumpfile -d 1\n", "path relative\n", "bogus 1\n")


class World(Bench):
    """The machine, the service, and what is true about them."""

    def __init__(self, root: Path, pick: random.Random) -> None:
        super().__init__(FakeMachine(root))
        self.pick = pick
        self.ours = False  # what the kernel holds was loaded by the service

    def held(self) -> bool:
        return (self.machine.root / "sys/kernel/kexec_crash_loaded").read_text().strip() == "1"

    def act(self, action: Callable[[], None]) -> None:
        before = len(self.kernel.calls)
        with contextlib.suppress(KdumpError):
            action()
        if len(self.kernel.calls) > before:
            self.ours = self.held()

    def step(self) -> str:
        name, event = self.pick.choice(self.events())
        event()
        return name

    def events(self) -> list[tuple[str, Callable[[], None]]]:
        machine, pick = self.machine, self.pick
        image = machine.root / "var/lib/kdumpd" / RELEASE / "initrd"

        def unload_behind() -> None:
            machine.crash_loaded(False)
            self.ours = False

        def next_boot() -> None:
            unload_behind()
            machine.write("proc/sys/kernel/random/boot_id", f"{pick.random()}\n")
            self.restart()

        def damage() -> None:
            if image.exists():
                image.write_bytes(b"x")

        return [
            ("unload behind its back", unload_behind),
            ("boot", next_boot),
            ("restart", self.restart),
            ("damage", damage),
            ("remove", lambda: image.unlink(missing_ok=True)),
            ("config", lambda: machine.config(pick.choice(CONFIGS))),
            ("load fails", lambda: self.kernel.fail.append(pick.choice([errno.ENOMEM, errno.ENOKEY]))),
            ("build fails", lambda: self.builder.fail.append("The disk is full")),
            ("load", lambda: self.act(self.engine.load)),
            ("unload", lambda: self.act(self.engine.unload)),
            ("reload", lambda: self.act(self.engine.reload)),
            ("rebuild", lambda: self.act(self.engine.rebuild)),
            ("look", lambda: self.act(self.engine.check)),
            ("hangup", lambda: self.act(lambda: self.engine.check(patient=False))),
            ("disable", lambda: machine.write("proc/sys/kernel/kexec_load_disabled", pick.choice("0001"))),
        ]


@pytest.mark.parametrize("seed", range(SEQUENCES))
def test_the_status_is_true_whatever_happens(tmp_path: Path, seed: int) -> None:
    world = World(tmp_path / "machine", random.Random(seed))
    history = []
    for _ in range(STEPS):
        history.append(world.step())
        world.act(world.engine.check)  # quiet again
        status = world.seen[-1]
        assert status.activity == "", history
        assert status.loaded == world.held(), history
        if status.state.rung.armed:
            assert world.held(), history
            assert world.ours, history
        if world.held() and world.ours:
            assert status.state.rung.armed, history
        assert status.state.rung.value != "rehearsed"
        assert (status.loaded_since_usec > 0) == (world.held() and world.ours), history
        if status.state.rung.value == "loaded":
            assert status.image_id == world.machine.image_id(), history


@pytest.mark.parametrize("seed", range(10))
def test_what_others_load_is_never_claimed(tmp_path: Path, seed: int) -> None:
    world = World(tmp_path / "machine", random.Random(1000 + seed))
    for _ in range(10):
        world.step()
    # Ours is unloaded and the service sees it; then somebody else loads his own.
    world.act(world.engine.unload)
    world.machine.write("proc/sys/kernel/kexec_load_disabled", "0")
    world.act(world.engine.unload)
    world.machine.crash_loaded(True)
    world.act(world.engine.check)
    status = world.seen[-1]
    assert status.loaded
    assert not status.state.rung.armed
    assert "loaded-by-other" in [reason.code.value for reason in status.state.reasons]
