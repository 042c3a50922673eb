# SPDX-License-Identifier: GPL-2.0-or-later
"""10,000 random sequences of events upon a machine of files: what is published is never wrong once it is quiet."""

from __future__ import annotations

import random
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from world import World

SHARDS = 20
SEQUENCES = 500  # in each shard
LONGEST = 8
# Those that are common here; image-stale needs a hold and two changes.
RUNGS = ("unsupported", "not-reserved", "reserved-too-small", "image-missing", "unloaded", "loaded", "loaded-stale")


@pytest.fixture
def folder() -> Iterator[Path]:
    """In memory: the machine's files are all this test does."""
    found = Path(tempfile.mkdtemp(prefix="kdumpd-model-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
    yield found
    shutil.rmtree(found)


@pytest.mark.parametrize("shard", range(SHARDS))
def test_the_status_is_true_whatever_happens(folder: Path, shard: int) -> None:
    pick = random.Random(shard)
    world = World(folder / "0", pick)
    rungs: Counter[str] = Counter()
    for number in range(SEQUENCES):
        if number % 25 == 24:  # most sequences begin where the last one ended
            shutil.rmtree(world.machine.root)
            world = World(folder / str(number), pick)
        history = [world.step() for _ in range(pick.randint(1, LONGEST))]
        world.quiet()
        _check(world, f"shard {shard}, sequence {number}: {', '.join(history)}")
        rungs[world.rung] += 1
    # A test that never gets anywhere proves nothing.
    assert min(rungs[rung] for rung in RUNGS) >= SEQUENCES // 100, rungs
    assert rungs["rehearsed"] > 0, rungs


def _check(world: World, history: str) -> None:
    status = world.status
    rung = status.state.rung.value
    codes = {reason.code.value for reason in status.state.reasons}
    held = world.holds
    assert status.activity == "", history
    assert rung != "proven", history

    # What the kernel says, and by whom.
    assert status.loaded == world.shows_loaded() == (held is not None), history
    ours = held is not None and held.ours
    assert (status.loaded_since_usec > 0) <= ours, history
    assert ("loaded-by-other" in codes) == (held is not None and not held.ours), history
    if status.state.rung.armed:
        assert ours, history

    # The rungs below, from the files alone.
    root = world.machine.root
    reserved = int((root / "sys/kernel/kexec_crash_size").read_text())
    supported = any((root / "sys/kernel" / name).exists() for name in ("kexec_crash_loaded", "kexec/crash_loaded"))
    fadump = root / "sys/kernel/fadump_enabled"
    if not supported or (fadump.exists() and fadump.read_text() == "1"):
        expected = {"unsupported"}
    elif reserved == 0:
        expected = {"not-reserved"}
    elif reserved < 100 << 20:
        expected = {"reserved-too-small"}
    elif ours:
        expected = {"loaded", "loaded-stale", "rehearsed"}
    else:
        expected = {"image-missing", "image-stale", "unloaded"}
    assert rung in expected, history

    if rung in ("loaded", "rehearsed"):
        pair = world.pair()
        tried = world.rehearsed == (pair["initrd_sha256"], pair["cmdline"])
        assert (rung == "rehearsed") == tried, history
        assert held is not None
        assert not world.bad_config, history
        assert status.image_id == world.machine.image_id(), history
        system = root / "sys/devices/system"
        for kind, then, now in (("memory", held.memory, world.memory), ("cpu", held.cpus, world.cpus)):
            handled = system / kind / "crash_hotplug"
            assert then == now or (handled.exists() and handled.read_text() == "1"), history
    assert ("config-error" in codes) <= world.bad_config, history
    if world.bad_config and rung in ("image-missing", "image-stale", "unloaded", "loaded-stale"):
        assert codes & {"config-error", "load-interrupted"}, history


def test_what_others_load_is_never_claimed(folder: Path) -> None:
    for seed in range(50):
        world = World(folder / f"other-{seed}", random.Random(100_000 + seed))
        for _ in range(10):
            world.step()
        # Ours is unloaded and the service sees it; then somebody else loads his own.
        world.machine.write("proc/sys/kernel/kexec_load_disabled", "0")
        world.act(world.engine.unload)
        world.show(True)
        world.act(world.engine.check)
        assert world.status.loaded
        assert not world.status.state.rung.armed
        assert "loaded-by-other" in world.codes() or world.rung == "unsupported"
