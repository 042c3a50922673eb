# SPDX-License-Identifier: GPL-2.0-or-later
"""kdumpd.service.engine over a machine of files: arming, failing, mending, and what it says meanwhile."""

from __future__ import annotations

import errno
import json
import threading
from pathlib import Path

import pytest
from bus_bench import wait
from engine_bench import Bench, codes
from fake_machine import RELEASE, bzimage

from kdumpd.errors import (
    BusyError,
    ConfigError,
    LoadError,
    LoadLostError,
)
from kdumpd.host.kexec import FILE_ON_CRASH
from kdumpd.host.kexec_pair import OpenPair


def test_the_first_look_changes_nothing(bench: Bench) -> None:
    bench.engine.first_status()
    assert bench.rung == "image-missing"
    assert bench.kernel.calls == []
    assert bench.lines() == []


def test_it_arms_by_itself(bench: Bench) -> None:
    bench.engine.check()
    assert bench.rung == "loaded"
    assert bench.status.loaded
    assert bench.status.image_id == bench.machine.image_id()
    assert bench.codes() == ["not-proven"]
    ((cmdline, flags),) = bench.kernel.calls
    assert flags == FILE_ON_CRASH
    assert "console=ttyS0" in cmdline
    assert "crashkernel" not in cmdline
    assert [status.activity for status in bench.seen if status.activity] == ["building", "loading"]
    record = json.loads((bench.machine.root / "run/kdumpd/loaded.json").read_text())
    assert record["image_id"] == bench.machine.image_id()
    assert (bench.machine.root / "run/kdumpd/loaded.json").stat().st_mode & 0o777 == 0o600


def test_a_quiet_machine_is_left_alone(bench: Bench) -> None:
    for _ in range(4):
        bench.engine.check()
    assert len(bench.kernel.calls) == 1
    assert bench.builder.builds == 1
    assert sum("armed (loaded)" in line.lower() for line in bench.lines()) == 1


def test_a_restart_neither_builds_nor_loads(bench: Bench) -> None:
    bench.engine.check()
    bench.restart()
    bench.engine.check()
    assert bench.rung == "loaded"
    assert len(bench.kernel.calls) == 1
    assert bench.builder.builds == 1


def test_an_unload_behind_its_back_is_seen_and_mended(bench: Bench) -> None:
    bench.engine.check()
    bench.machine.crash_loaded(False)
    bench.engine.check()
    assert bench.status.loaded
    assert len(bench.kernel.calls) == 2
    assert bench.builder.builds == 1


def test_an_unload_on_request_is_respected(bench: Bench) -> None:
    bench.engine.check()
    bench.engine.unload()
    assert bench.rung == "unloaded"
    assert bench.codes() == ["held"]
    bench.engine.check()
    bench.engine.reload()
    assert not bench.status.loaded
    bench.engine.load()
    assert bench.rung == "loaded"
    bench.engine.unload()
    bench.engine.unload()
    assert bench.rung == "unloaded"


def test_a_hold_survives_a_restart_but_not_a_boot(bench: Bench) -> None:
    bench.engine.check()
    bench.engine.unload()
    bench.restart()
    bench.engine.check()
    assert bench.codes() == ["held"]
    bench.machine.write("proc/sys/kernel/random/boot_id", "another\n")
    bench.restart()
    bench.engine.check()
    assert bench.rung == "loaded"


def test_a_change_is_seen_soon_and_acted_upon_once(bench: Bench) -> None:
    bench.engine.check()
    bench.engine.start()
    try:
        bench.machine.config("final_action poweroff\n")
        for _ in range(100):
            bench.engine.changed("config")
        wait(lambda: any("image-stale" in codes(status) for status in bench.seen), "the look")
        wait(lambda: bench.rung == "loaded" and bench.status.image_id == bench.machine.image_id(), "the load")
        assert bench.builder.builds == 2
    finally:
        bench.engine.stop(5)


def test_a_change_while_it_works_is_made_up_for(bench: Bench) -> None:
    bench.engine.start()
    try:
        bench.builder.seconds = 1.0
        worker = threading.Thread(target=bench.engine.load)
        worker.start()
        wait(lambda: bench.builder.reading == 1, "a build that has read the configuration")
        bench.machine.config("final_action poweroff\n")
        bench.engine.do(bench.engine.check)
        worker.join()
        wait(lambda: bench.builder.builds >= 2 and bench.rung == "loaded", "the second build")
    finally:
        bench.engine.stop(5)


def test_an_unload_past_the_service_is_only_reported_where_the_configuration_says_so(bench: Bench) -> None:
    bench.machine.config("on_unload report\n")
    bench.engine.check()
    bench.machine.crash_loaded(False)
    for _ in range(2):
        bench.engine.check()
        assert bench.rung == "unloaded"
        assert bench.codes() == ["unloaded-by-other"]
    assert sum("past kdumpd; it stays unloaded" in line for line in bench.lines()) == 1
    bench.restart()
    bench.engine.check()
    assert bench.codes() == ["unloaded-by-other"]
    bench.engine.load()
    assert bench.rung == "loaded"


def test_an_unload_past_the_service_is_told_to_the_journal(bench: Bench) -> None:
    bench.engine.check()
    bench.machine.crash_loaded(False)
    bench.engine.check()
    assert bench.rung == "loaded"
    assert sum("past kdumpd; it is loaded again" in line for line in bench.lines()) == 1
    bench.engine.unload()
    assert sum("past kdumpd" in line for line in bench.lines()) == 1


def test_new_memory_is_one_reload_unless_the_kernel_mends_the_image(bench: Bench) -> None:
    bench.engine.check()
    bench.machine.plug_memory()
    bench.engine.look()
    assert bench.rung == "loaded-stale"
    assert bench.codes()[0] == "hardware-changed"
    bench.engine.check()
    assert bench.rung == "loaded"
    assert (len(bench.kernel.calls), bench.builder.builds) == (2, 1)
    bench.machine.write("sys/devices/system/memory/crash_hotplug", "1\n")
    bench.machine.plug_memory()
    bench.engine.check()
    assert bench.rung == "loaded"
    assert len(bench.kernel.calls) == 2


def test_the_journal_names_all_reasons(bench: Bench) -> None:
    bench.machine.config("path relative\nfrobnicate 1\n")
    bench.machine.write("proc/sys/kernel/panic_on_oops", "0\n")
    bench.engine.check()
    (line,) = [line for line in bench.lines() if "not armed" in line.lower()]
    for words in ("kdump.conf:1:", "no capture image", "kdump.conf:2:", "panic_on_oops"):
        assert words in line


def test_a_failed_build_does_not_end_a_hold(bench: Bench) -> None:
    bench.engine.check()
    bench.engine.unload()
    bench.machine.config("final_action halt\n")
    bench.builder.fail = ["No room"]
    bench.engine.check()
    assert not bench.status.loaded
    assert "held" in bench.codes()


def test_somebody_elses_capture_kernel_is_reported_and_stays(bench: Bench) -> None:
    bench.machine.crash_loaded(True)
    bench.engine.check()
    assert bench.kernel.calls == []
    assert bench.rung == "unloaded"
    assert bench.status.loaded
    assert "loaded-by-other" in bench.codes()
    assert bench.status.loaded_since_usec == 0
    bench.engine.reload()
    assert bench.kernel.calls == []
    bench.engine.load()
    assert bench.rung == "loaded"
    assert "loaded-by-other" not in bench.codes()


def test_what_others_load_after_an_unload_is_not_claimed(bench: Bench) -> None:
    bench.engine.check()
    bench.engine.unload()
    bench.machine.crash_loaded(True)
    bench.engine.check()
    assert "loaded-by-other" in bench.codes()
    assert bench.rung == "unloaded"


def test_a_record_of_another_boot_claims_nothing(bench: Bench) -> None:
    bench.engine.check()
    bench.machine.write("proc/sys/kernel/random/boot_id", "another\n")
    bench.restart()
    bench.engine.check()
    assert "loaded-by-other" in bench.codes()


def test_a_service_killed_while_loading_loads_again(bench: Bench) -> None:
    bench.engine.check()
    run = bench.machine.root / "run/kdumpd"
    (run / "loading.json").write_text((run / "loaded.json").read_text())
    bench.restart()
    bench.engine.first_status()
    assert bench.rung == "loaded-stale"
    assert bench.codes()[0] == "load-interrupted"
    bench.engine.check()
    assert bench.rung == "loaded"
    assert len(bench.kernel.calls) == 2


def test_a_loader_that_outlived_the_service_is_still_ours(bench: Bench) -> None:
    """The kernel is empty while it loads: what it holds afterwards is not another's."""
    bench.engine.check()
    run = bench.machine.root / "run/kdumpd"
    (run / "loading.json").write_text((run / "loaded.json").read_text())
    bench.machine.crash_loaded(False)
    bench.restart()
    bench.engine.look()
    assert bench.rung == "unloaded"
    bench.machine.crash_loaded(True)
    bench.engine.look()
    assert (bench.rung, bench.codes()[0]) == ("loaded-stale", "load-interrupted")
    bench.engine.check()
    assert bench.rung == "loaded"


def test_a_change_of_the_configuration_leads_to_a_new_image(bench: Bench) -> None:
    bench.engine.check()
    first = bench.machine.image_id()
    bench.machine.config("final_action poweroff\n")
    bench.engine.check()
    assert bench.builder.builds == 2
    assert bench.machine.image_id() != first
    assert bench.rung == "loaded"
    assert bench.status.image_id == bench.machine.image_id()


def test_a_broken_configuration_keeps_the_last_good_image_armed(bench: Bench) -> None:
    bench.engine.check()
    bench.machine.config("path relative\n")
    bench.engine.check()
    assert bench.rung == "loaded-stale"
    assert bench.codes()[0] == "config-error"
    assert "/etc/kdump.conf:1:" in bench.status.state.reasons[0].sentence
    assert bench.status.loaded
    assert bench.builder.builds == 1
    with pytest.raises(ConfigError, match=r"kdump\.conf:1"):
        bench.engine.reload()
    with pytest.raises(ConfigError):
        bench.engine.rebuild()
    assert len(bench.kernel.calls) == 1


def test_after_a_boot_with_a_broken_configuration_the_old_image_is_loaded(bench: Bench) -> None:
    bench.engine.check()
    bench.machine.config("path relative\n")
    bench.machine.write("proc/sys/kernel/random/boot_id", "another\n")
    bench.machine.crash_loaded(False)
    bench.restart()
    bench.engine.check()
    assert bench.status.loaded
    assert bench.rung == "loaded-stale"


def test_a_broken_configuration_and_no_image(bench: Bench) -> None:
    bench.machine.config("path relative\n")
    bench.engine.check()
    assert bench.rung == "image-missing"
    assert bench.codes()[0] == "config-error"
    with pytest.raises(ConfigError):
        bench.engine.load()
    assert bench.builder.builds == 0


def test_an_unknown_directive_is_only_a_note(bench: Bench) -> None:
    bench.machine.config("frobnicate 1\n")
    bench.engine.check()
    assert bench.rung == "loaded"
    assert bench.codes() == ["not-proven", "config-warning"]


def test_only_one_thing_at_a_time(bench: Bench) -> None:
    build, go_on = bench.builder.build, threading.Event()

    def waits(release: str) -> str:
        assert go_on.wait(60)
        return build(release)

    bench.builder.build = waits  # type: ignore[method-assign]
    worker = threading.Thread(target=bench.engine.check)
    worker.start()
    wait(lambda: bench.seen and bench.status.activity == "building", "the build")
    for action in (bench.engine.load, bench.engine.unload, bench.engine.reload, bench.engine.rebuild):
        with pytest.raises(BusyError):
            action()
    bench.engine.check()
    go_on.set()
    worker.join()
    assert bench.rung == "loaded"
    assert bench.builder.builds == 1


def test_rebuild_builds_what_is_fresh(bench: Bench) -> None:
    bench.engine.check()
    bench.engine.rebuild()
    assert bench.builder.builds == 2
    assert len(bench.kernel.calls) == 2


def test_the_pair_that_is_loaded_outlives_its_files(bench: Bench) -> None:
    """An upgrade that replaces the kernel in place, and a new image: should they fail, the old pair is still whole."""
    bench.engine.check()
    root = bench.machine.root
    record = json.loads((root / "run/kdumpd/loaded.json").read_text())
    assert Path(record["initrd"]).samefile(root / "var/lib/kdumpd" / RELEASE / "initrd")
    before = {name: Path(record[name]).read_bytes() for name in ("kernel", "initrd")}
    bench.machine.write(f"boot/vmlinuz-{RELEASE}", bzimage(init_size=53 << 20))
    bench.kernel.fail = [errno.ENOMEM, 0]
    with pytest.raises(LoadError, match="previous image is loaded again"):
        bench.engine.rebuild()
    assert {name: Path(record[name]).read_bytes() for name in before} == before
    bench.engine.rebuild()
    record = json.loads((root / "run/kdumpd/loaded.json").read_text())
    kept = sorted(str(path) for path in (root / "var/lib/kdumpd/loaded").iterdir())
    assert kept == sorted([record["kernel"], record["initrd"]])
    assert Path(record["kernel"]).read_bytes() != before["kernel"]


def test_a_changed_command_line_is_loaded_without_a_build(bench: Bench) -> None:
    bench.engine.check()
    bench.machine.config("commandline_append systemd.log_level=debug\n")
    bench.engine.look()
    assert bench.rung == "loaded-stale"
    assert bench.codes()[0] == "old-settings-loaded"
    bench.engine.check()
    assert bench.rung == "loaded"
    assert bench.builder.builds == 1
    assert [cmdline.endswith(" systemd.log_level=debug") for cmdline, _ in bench.kernel.calls] == [False, True]
    bench.engine.check()
    assert len(bench.kernel.calls) == 2


def test_a_record_with_nonsense_in_it_claims_nothing(bench: Bench) -> None:
    bench.engine.check()
    path = bench.machine.root / "run/kdumpd/loaded.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "syscall": "kexec_magic"}))
    bench.restart()
    bench.engine.check()
    assert "loaded-by-other" in bench.codes()


def test_a_loader_that_died_without_an_answer(bench: Bench) -> None:
    """Whether the kernel took the new pair is not known: nothing is claimed, and the next look loads again."""
    bench.engine.check()

    def die(opened: OpenPair) -> None:
        raise LoadLostError("The loader ended without an answer")

    bench.machine.config("nr_cpus 3\n")
    bench.kernel.before = die
    bench.engine.check()
    assert (bench.rung, bench.codes()[0]) == ("loaded-stale", "load-interrupted")
    bench.kernel.before = None
    bench.engine.check(patient=False)
    assert bench.rung == "loaded"
