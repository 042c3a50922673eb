# SPDX-License-Identifier: GPL-2.0-or-later
"""What is loaded at the start of the service before it has looked: only what it would have loaded, or nothing."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from engine_bench import Bench
from fake_machine import BOOT_ID, MIB, RELEASE, UUID, FakeMachine

from kdumpd.host.kexec_pair import OpenPair
from kdumpd.service.early import READY_NAME, Armed, Early
from kdumpd.service.places import Places

TOP = Path(__file__).resolve().parents[3]
NEXT_BOOT = BOOT_ID.replace("1", "2")
_KEPT_DIGITS = 16


def _settled(bench: Bench) -> None:
    """An armed machine whose service has nothing left to do."""
    for _ in range(3):
        bench.engine.check()
    assert bench.rung == "loaded"


def _boot(bench: Bench) -> None:
    bench.machine.write("proc/sys/kernel/random/boot_id", f"{NEXT_BOOT}\n")
    bench.machine.crash_loaded(False)
    bench.kernel.calls.clear()


def _early(bench: Bench) -> Armed | None:
    early = Early(Places.below(bench.machine.root), bench.kernel.loader())
    early.begin()
    assert early.wait()
    return early.armed


def _record(bench: Bench, name: str = "run/kdumpd/loaded.json") -> dict[str, object]:
    found: dict[str, object] = json.loads((bench.machine.root / name).read_text())
    return found


def _follows(bench: Bench) -> None:
    """The service that starts behind it, and what the kernel holds in the end."""
    bench.restart()
    bench.engine.first_status()
    bench.engine.check()
    assert bench.rung == "loaded", bench.codes()
    held, record = bench.kernel.held(), _record(bench)
    assert held == {"initrd_sha256": record["initrd_sha256"], "cmdline": record["cmdline"]}


def test_a_boot_with_nothing_changed(bench: Bench) -> None:
    _settled(bench)
    before = _record(bench)
    _boot(bench)
    armed = _early(bench)
    assert armed is not None
    assert (armed.release, armed.image_id) == (RELEASE, bench.machine.image_id())
    assert (armed.reserved_bytes, armed.again) == (256 * MIB, False)
    after = _record(bench)
    changed = {name for name, value in after.items() if value != before[name]}
    assert changed == {"boot_id", "loaded_usec"}
    assert after["boot_id"] == NEXT_BOOT
    assert not (bench.machine.root / "run/kdumpd/loading.json").exists()
    assert len(bench.kernel.calls) == 1
    _follows(bench)
    assert len(bench.kernel.calls) == 1  # the engine has nothing to add
    assert bench.builder.builds == 1


def test_some_pages_more_or_less_are_noted_anew(bench: Bench) -> None:
    """As firmware leaves them at each boot; a change later in this boot is found by what is noted now."""
    _settled(bench)
    _boot(bench)
    iomem = bench.machine.root / "proc/iomem"
    iomem.write_text(iomem.read_text().replace("7fffffff : System RAM", "7ffeffff : System RAM", 1))
    assert _early(bench) is not None
    assert str(_record(bench)["memory"]).startswith("1000-7ffeffff,")
    _follows(bench)
    assert len(bench.kernel.calls) == 1
    bench.machine.plug_memory()
    bench.engine.check()
    assert len(bench.kernel.calls) == 2


CHANGES: dict[str, Callable[[FakeMachine], object]] = {
    "configuration": lambda machine: machine.config("final_action halt\n"),
    "a drop-in": lambda machine: machine.write("etc/kdump.conf.d/10.conf", "final_action halt\n"),
    "command line": lambda machine: machine.write("proc/cmdline", f"root=UUID={UUID} crashkernel=256M nopti\n"),
    "reservation": lambda machine: machine.write("sys/kernel/kexec_crash_size", f"{200 * MIB}\n"),
    "memory": lambda machine: machine.plug_memory(),
    "processors": lambda machine: machine.write("sys/devices/system/cpu/present", "0-3\n"),
    "first processor": lambda machine: machine.write("proc/cpuinfo", "processor\t: 0\napicid\t\t: 4\n"),
    "kernel file": lambda machine: machine.write(
        f"boot/vmlinuz-{RELEASE}", (machine.root / f"boot/vmlinuz-{RELEASE}").read_bytes()
    ),
    "kernel release": lambda machine: machine.write("proc/sys/kernel/osrelease", "6.1.0-100-fake-amd64\n"),
    "image": lambda machine: os.utime(machine.root / f"var/lib/kdumpd/{RELEASE}/initrd"),
    "image's record": lambda machine: os.utime(machine.root / f"var/lib/kdumpd/{RELEASE}/image.json"),
    "loading disabled": lambda machine: machine.write("proc/sys/kernel/kexec_load_disabled", "1\n"),
    "load limit": lambda machine: machine.write("proc/sys/kernel/kexec_load_limit_panic", "0\n"),
    "fadump": lambda machine: machine.write("sys/kernel/fadump_enabled", "1\n"),
    "keys are named": lambda machine: (machine.root / "sys/kernel/config/crash_dm_crypt_keys/x").mkdir(parents=True),
    "held": lambda machine: machine.write("run/kdumpd/held.json", json.dumps({"boot_id": NEXT_BOOT})),
    "a load under way": lambda machine: machine.write("run/kdumpd/loading.json", json.dumps({"boot_id": NEXT_BOOT})),
    "loaded already": lambda machine: machine.crash_loaded(True),
    "no crash kexec": lambda machine: machine.crash_loaded(None),
    "no boot id": lambda machine: machine.write("proc/sys/kernel/random/boot_id", ""),
    "no note": lambda machine: (machine.root / "var/lib/kdumpd" / READY_NAME).unlink(),
    "a note cut short": lambda machine: machine.write(f"var/lib/kdumpd/{READY_NAME}", "{"),
    "another note": lambda machine: machine.write(f"var/lib/kdumpd/{READY_NAME}", '{"facts": []}'),
    "a note of numbers": lambda machine: machine.write(
        f"var/lib/kdumpd/{READY_NAME}",
        '{"record": {"release": 1}, "kernel": 2, "initrd": 3, "reports": false, "facts": []}',
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_whatever_changed_is_left_to_the_engine(bench: Bench, name: str) -> None:
    _settled(bench)
    _boot(bench)
    said = (bench.machine.root / "run/kdumpd/loaded.json").read_text()
    CHANGES[name](bench.machine)
    assert _early(bench) is None
    assert bench.kernel.calls == []
    assert (bench.machine.root / "run/kdumpd/loaded.json").read_text() == said


def test_an_image_that_is_not_whole_is_not_loaded(bench: Bench) -> None:
    """Should size and times tell nothing, the loader compares the sum."""
    _settled(bench)
    _boot(bench)
    image = bench.machine.root / f"var/lib/kdumpd/{RELEASE}/initrd"
    image.write_bytes(bytes(image.stat().st_size))
    note = bench.machine.root / "var/lib/kdumpd" / READY_NAME
    ready = json.loads(note.read_text())
    status = image.stat()
    stamp = f"{image} {status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"
    ready["facts"] = [stamp if fact.startswith(f"{image} ") else fact for fact in ready["facts"]]
    note.write_text(json.dumps(ready))
    assert _early(bench) is None
    assert bench.kernel.calls == []
    _follows(bench)
    assert bench.builder.builds == 2


def test_a_slow_load_is_waited_for_in_parts(bench: Bench) -> None:
    _settled(bench)
    _boot(bench)
    asked, go_on = threading.Event(), threading.Event()

    def slow(opened: OpenPair) -> None:
        asked.set()
        assert go_on.wait(60)

    bench.kernel.before = slow
    early = Early(Places.below(bench.machine.root), bench.kernel.loader())
    assert early.wait(0.0)
    early.begin()
    assert early.began
    assert asked.wait(60)
    assert not early.wait(0.01)
    assert (bench.machine.root / "run/kdumpd/loading.json").exists()
    assert early.armed is None
    go_on.set()
    assert early.wait()
    assert early.armed is not None


def test_what_the_kernel_refuses_the_engine_tells(bench: Bench) -> None:
    _settled(bench)
    _boot(bench)
    bench.kernel.fail = [errno.ENOMEM, errno.ENOMEM]
    assert _early(bench) is None
    assert not (bench.machine.root / "run/kdumpd/loading.json").exists()
    bench.restart()
    bench.engine.check()
    assert "load-failed" in bench.codes()
    bench.engine.check(patient=False)
    assert bench.rung == "loaded"


def test_a_loader_that_is_lost_leaves_nothing_known(bench: Bench) -> None:
    from kdumpd.errors import LoadLostError

    def die(opened: OpenPair) -> None:
        raise LoadLostError("The loader ended without an answer")

    _settled(bench)
    _boot(bench)
    bench.kernel.before = die
    assert _early(bench) is None
    assert _record(bench, "run/kdumpd/loading.json")["boot_id"] == NEXT_BOOT
    bench.kernel.before = None
    _follows(bench)


@pytest.mark.parametrize("reports", [False, True])
def test_what_somebody_unloaded(bench: Bench, reports: bool) -> None:
    """It is loaded again, which the journal has to hear; with on_unload report that is the engine's business."""
    bench.machine.config(f"on_unload {'report' if reports else 'reload'}\n")
    _settled(bench)
    bench.machine.crash_loaded(False)
    bench.kernel.calls.clear()
    armed = _early(bench)
    if reports:
        assert armed is None
        assert bench.kernel.calls == []
        bench.restart()
        bench.engine.check()
        assert (bench.rung, bench.codes()[0]) == ("unloaded", "unloaded-by-other")
    else:
        assert armed is not None
        assert armed.again
        _follows(bench)


def test_nothing_is_noted_before_it_is_settled(bench: Bench) -> None:
    note = bench.machine.root / "var/lib/kdumpd" / READY_NAME
    bench.engine.unload()
    bench.engine.look()
    assert not note.exists()
    bench.engine.load()
    bench.engine.look()
    assert note.exists()
    assert note.stat().st_mode & 0o777 == 0o600
    text = note.read_text()
    bench.machine.config("path relative\n")
    bench.engine.look()
    assert note.read_text() == text


def test_killed_at_each_of_its_operations(tmp_path: Path) -> None:
    """Audit events of Python are the operations that change files; after each, a new service comes to the same end."""
    for number in range(1, 60):
        bench = Bench(FakeMachine(tmp_path / str(number)))
        _settled(bench)
        _boot(bench)
        child = os.fork()
        if child == 0:
            try:
                _kill_at(number)
                _early(bench)
            finally:
                os._exit(0)
        _, status = os.waitpid(child, 0)
        _follows(bench)
        if not os.WIFSIGNALED(status):
            assert number > 4
            return
    raise AssertionError("there is no end to it")


def _kill_at(number: int) -> None:
    left = number

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal left
        changes = event in ("os.rename", "os.remove") or (
            event == "open" and isinstance(arguments[2], int) and arguments[2] & os.O_ACCMODE != os.O_RDONLY
        )
        if changes:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def test_a_kept_kernel_is_not_copied_again(bench: Bench) -> None:
    _settled(bench)
    kept = Path(str(_record(bench)["kernel"]))
    assert kept.name == f"kernel-{_record(bench)['kernel_sha256']}"[: len("kernel-") + _KEPT_DIGITS]
    inode = kept.stat().st_ino
    bench.engine.unload()
    bench.engine.load()
    assert (Path(str(_record(bench)["kernel"])), kept.stat().st_ino) == (kept, inode)
    kept.write_bytes(b"short")
    bench.engine.load()
    assert kept.read_bytes() == (bench.machine.root / f"boot/vmlinuz-{RELEASE}").read_bytes()


def test_it_is_there_before_the_daemon() -> None:
    """Each of these modules is time that a machine waits for its capture kernel."""
    code = "import sys, kdumpd.service.__main__; print(*sys.modules)"
    first = subprocess.run(["/usr/bin/python3", "-s", "-c", code], cwd=TOP, capture_output=True, text=True, check=True)
    assert "kdumpd.loader.call" in first.stdout.split()
    assert not {"pathlib", "typing", "json", "ctypes", "kdumpd.errors"} & set(first.stdout.split())
    code = "import sys, kdumpd.service.__main__, kdumpd.service.early, kdumpd.loader.client; print(*sys.modules)"
    words = ["/usr/bin/python3", "-s", "-c", code]
    loaded = subprocess.run(words, cwd=TOP, capture_output=True, text=True, check=True, timeout=180).stdout.split()
    assert "kdumpd.host.kexec" in loaded
    slow = {"dataclasses", "inspect", "argparse", "subprocess", "logging", "gi", "kdumpd.config.model"}
    assert not slow & set(loaded)
