# SPDX-License-Identifier: GPL-2.0-or-later
"""The record of a rehearsal: it counts for the pair it is of, and for no other; nonsense counts for nothing."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from engine_bench import Bench

from kdumpd.service.model import LastRehearsal
from kdumpd.service.rehearsed import REHEARSAL_NAME, read_rehearsal, write_rehearsal


def rehearsal(bench: Bench, **changes: object) -> LastRehearsal:
    """Of what the bench has loaded."""
    loaded = json.loads((bench.machine.root / "run/kdumpd/loaded.json").read_text())
    good = LastRehearsal(
        release=loaded["release"],
        image_id=loaded["image_id"],
        initrd_sha256=loaded["initrd_sha256"],
        kernel_sha256=loaded["kernel_sha256"],
        cmdline=loaded["cmdline"],
        time_usec=1_700_000_000_000_000,
        seconds=12.5,
        accel="tcg",
        exchanged=("the disk, one of QEMU on NVMe",),
        lowest_available_bytes=50 << 20,
    )
    return dataclasses.replace(good, **changes)  # type: ignore[arg-type]  # keys are fields


def state(bench: Bench) -> tuple[str, list[str]]:
    bench.engine.look()
    return bench.rung, bench.codes()


def test_the_pair_that_is_loaded_is_rehearsed(bench: Bench) -> None:
    bench.engine.load()
    assert state(bench) == ("loaded", ["not-proven"])
    folder = bench.machine.root / "var/lib/kdumpd"
    write_rehearsal(folder, rehearsal(bench))
    assert (folder / REHEARSAL_NAME).stat().st_mode & 0o777 == 0o600
    assert read_rehearsal(folder) == rehearsal(bench)
    assert state(bench) == ("rehearsed", ["not-proven"])
    assert bench.status.to_dict()["last_rehearsal"] == {
        "outcome": "complete",
        "image_id": rehearsal(bench).image_id,
        "time_usec": 1_700_000_000_000_000,
        "took_usec": 12_500_000,
        "exchanged": "the disk, one of QEMU on NVMe",
        "lowest_available_bytes": 50 << 20,
    }
    bench.machine.crash("a", image_id=rehearsal(bench).image_id)
    assert state(bench) == ("proven", [])


@pytest.mark.parametrize("field", ["image_id", "initrd_sha256", "kernel_sha256", "cmdline"])
def test_another_pair_is_not(field: str, bench: Bench) -> None:
    bench.engine.load()
    write_rehearsal(bench.machine.root / "var/lib/kdumpd", rehearsal(bench, **{field: "other"}))
    assert state(bench) == ("loaded", ["not-proven"])


def test_a_change_of_settings_takes_the_rung_away(bench: Bench) -> None:
    bench.engine.load()
    write_rehearsal(bench.machine.root / "var/lib/kdumpd", rehearsal(bench))
    assert state(bench)[0] == "rehearsed"
    bench.machine.config("final_action halt\n")
    assert state(bench)[0] == "loaded-stale"
    bench.engine.reload()
    assert state(bench)[0] == "loaded"


def test_a_failed_rehearsal_is_shown_for_its_pair_alone(bench: Bench) -> None:
    bench.engine.load()
    folder = bench.machine.root / "var/lib/kdumpd"
    write_rehearsal(folder, rehearsal(bench, problem="the capture failed: no disk"))
    assert state(bench) == ("loaded", ["not-proven", "rehearsal-failed"])
    assert "the capture failed: no disk" in bench.status.state.reasons[-1].sentence
    write_rehearsal(folder, rehearsal(bench, problem="the capture failed: no disk", initrd_sha256="other"))
    assert state(bench) == ("loaded", ["not-proven"])


@pytest.mark.parametrize(
    "change",
    [
        {"problem": None},
        {"seconds": "long"},
        {"time_usec": -1},
        {"dump_bytes": True},
        {"exchanged": [1]},
        {"exchanged": "text"},
        {"cmdline": 7},
    ],
)
def test_a_record_that_is_none_counts_for_nothing(change: dict[str, object], bench: Bench) -> None:
    bench.engine.load()
    folder = bench.machine.root / "var/lib/kdumpd"
    write_rehearsal(folder, rehearsal(bench))
    raw = json.loads((folder / REHEARSAL_NAME).read_text())
    (folder / REHEARSAL_NAME).write_text(json.dumps({**raw, **change}))
    assert read_rehearsal(folder) is None
    assert state(bench)[0] == "loaded"
    for text in ("", "[]", "{}", "\xff"):
        Path(folder / REHEARSAL_NAME).write_text(text)
        assert read_rehearsal(folder) is None
