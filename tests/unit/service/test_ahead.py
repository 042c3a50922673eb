# SPDX-License-Identifier: GPL-2.0-or-later
"""Images for kernels that do not run yet: built ahead, kept fresh, removed with their kernel, and with nothing else."""

from __future__ import annotations

import hashlib
import io
import time
from pathlib import Path

import pytest
from bus_bench import wait
from fake_machine import RELEASE, FakeBuilder, FakeMachine, bzimage

from kdumpd.service import pending
from kdumpd.service.ahead import Ahead
from kdumpd.service.journal import Journal
from kdumpd.service.places import Places

NEW = "6.12.9-fake-amd64"


def install(machine: FakeMachine, release: str = NEW, *, image: str = "boot/vmlinuz-{}") -> None:
    machine.write(image.format(release), bzimage())
    machine.write(f"boot/config-{release}", (machine.root / f"boot/config-{RELEASE}").read_bytes())
    for name in ("modules.dep", "modules.alias", "modules.softdep", "modules.builtin"):
        text = (machine.root / f"usr/lib/modules/{RELEASE}" / name).read_bytes()
        machine.write(f"usr/lib/modules/{release}/{name}", text)


def uninstall(machine: FakeMachine, release: str) -> None:
    (machine.root / f"boot/vmlinuz-{release}").unlink()
    folder = machine.root / f"usr/lib/modules/{release}"
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()


class Bench:
    def __init__(self, machine: FakeMachine) -> None:
        self.machine = machine
        self.builder = FakeBuilder(machine)
        self.journal = io.StringIO()
        self.places = Places.below(machine.root)
        self.places.state_dir.mkdir(parents=True)
        self.ahead = Ahead(self.places, self.builder, Journal(self.journal), quiet_seconds=0.0)

    def image(self, release: str) -> Path:
        return self.places.state_dir / release / "initrd"

    def note(self, release: str, event: pending.Event = pending.Event.ADD) -> None:
        pending.leave(self.places.state_dir, release, event)


@pytest.fixture
def bench(machine: FakeMachine) -> Bench:
    return Bench(machine)


def boot_files(machine: FakeMachine) -> dict[str, str]:
    files = [path for path in (machine.root / "boot").rglob("*") if path.is_file()]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.parametrize("image", ["boot/vmlinuz-{}", "usr/lib/modules/{}/vmlinuz"])
def test_a_kernel_with_a_note_gets_its_image_once(bench: Bench, image: str) -> None:
    install(bench.machine, image=image)
    bench.note(NEW)
    before = boot_files(bench.machine)
    assert bench.ahead.sweep()
    assert bench.image(NEW).exists()
    assert pending.read(bench.places.state_dir) == {}
    assert "ahead of its first boot" in bench.journal.getvalue()
    assert bench.ahead.sweep()
    assert bench.builder.builds == 1
    assert boot_files(bench.machine) == before


def test_a_kernel_that_appears_needs_no_note(bench: Bench) -> None:
    install(bench.machine)
    assert bench.ahead.sweep()
    assert bench.image(NEW).exists()


def test_kernels_that_were_there_before_are_left_to_their_boot(machine: FakeMachine) -> None:
    install(machine)
    bench = Bench(machine)
    assert bench.ahead.sweep()
    assert bench.builder.builds == 0


def test_an_image_built_ahead_is_kept_fresh(bench: Bench) -> None:
    install(bench.machine)
    bench.ahead.sweep()
    bench.machine.config("final_action halt\n")
    assert bench.ahead.sweep()
    assert bench.builder.builds == 2
    bench.machine.config("final_action explode\n")
    assert bench.ahead.sweep()
    assert bench.builder.builds == 2


def test_a_kernel_that_is_half_unpacked_waits(bench: Bench) -> None:
    install(bench.machine)
    modules = bench.machine.root / f"usr/lib/modules/{NEW}/modules.dep"
    modules.unlink()
    bench.note(NEW)
    assert not bench.ahead.sweep()
    assert bench.builder.builds == 0
    modules.touch()
    assert bench.ahead.sweep()
    assert bench.builder.builds == 1


def test_a_build_that_fails_keeps_the_note(bench: Bench) -> None:
    install(bench.machine)
    bench.note(NEW)
    bench.builder.fail = ["no space"]
    assert not bench.ahead.sweep()
    assert set(pending.read(bench.places.state_dir)) == {NEW}
    assert "no space" in bench.journal.getvalue()
    assert bench.ahead.sweep()
    assert bench.image(NEW).exists()


@pytest.mark.parametrize("noted", [True, False])
def test_a_removed_kernel_takes_only_our_files_along(bench: Bench, noted: bool) -> None:
    install(bench.machine)
    bench.ahead.sweep()
    own = bench.image(NEW).parent / "notes.txt"
    own.write_text("somebody's")
    if noted:
        bench.note(NEW, pending.Event.REMOVE)  # kernel-install(8) says so while the files are still there
    else:
        uninstall(bench.machine, NEW)
    before = boot_files(bench.machine)
    assert bench.ahead.sweep()
    assert not bench.image(NEW).exists()
    assert own.exists()
    assert boot_files(bench.machine) == before
    assert pending.read(bench.places.state_dir) == {}
    assert "Removed the capture image" in bench.journal.getvalue()


def test_the_running_kernel_keeps_its_image_while_it_is_removed(bench: Bench) -> None:
    bench.builder.build(RELEASE)
    uninstall(bench.machine, RELEASE)
    bench.note(RELEASE, pending.Event.REMOVE)
    bench.ahead.sweep()
    assert bench.image(RELEASE).exists()
    assert pending.read(bench.places.state_dir) == {RELEASE: pending.Event.REMOVE}
    bench.machine.write("proc/sys/kernel/osrelease", "6.99-other\n")
    Ahead(bench.places, bench.builder, Journal(bench.journal)).sweep()
    assert not bench.image(RELEASE).exists()


def test_it_works_by_itself_after_a_change(bench: Bench) -> None:
    bench.ahead.start()
    try:
        install(bench.machine)
        bench.ahead.changed({"memory"})
        time.sleep(0.1)
        bench.ahead.changed({"hook"})
        wait(bench.image(NEW).exists, "the image")
    finally:
        bench.ahead.stop()


def test_a_kernel_removed_while_its_image_is_built_loses_the_image(bench: Bench) -> None:
    """Its note comes while its files are there, and they may stay for good."""

    class Builder(FakeBuilder):
        def build(self, release: str) -> str:
            line = super().build(release)
            bench.note(release, pending.Event.REMOVE)
            return line

    install(bench.machine)
    bench.note(NEW)
    ahead = Ahead(bench.places, Builder(bench.machine), Journal(bench.journal))
    assert not ahead.sweep(), "there is something left to do"
    assert ahead.sweep()
    assert not bench.image(NEW).exists()
    assert pending.read(bench.places.state_dir) == {}
