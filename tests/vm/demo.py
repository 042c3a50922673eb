# SPDX-License-Identifier: GPL-2.0-or-later
"""The main job before your eyes: `packaging/demo [--symbols] [--shell] [--keep]`.

A real Debian machine in QEMU with kdumpd installed from its package dies and comes back with its dump; what the
dump holds is then compared with what other programs find in the same memory. Ends with 0 only when all was as it
should be.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import select
import shutil
import sys
import termios
import time
import tty
from collections.abc import Iterator
from pathlib import Path

from lab import circle, image, prepare, proof, reference, tools, vmcore
from lab.aptroot import LabError
from lab.qemu import Machine

TOP = Path(__file__).resolve().parents[2]
WORK = TOP / "build" / "demo"
MEMORY_MIB = 2048
SERIES = "6.1"


class Steps:
    """What took how long; downloads are told apart, since they depend on the network."""

    def __init__(self) -> None:
        self._rows: list[tuple[str, float, bool]] = []

    @contextlib.contextmanager
    def step(self, name: str, *, download: bool = False) -> Iterator[None]:
        """Announces and times one step."""
        say(f"\n\033[1m== {name}\033[0m" if sys.stdout.isatty() else f"\n== {name}")
        begin = time.monotonic()
        try:
            yield
        finally:
            self._rows.append((name, time.monotonic() - begin, download))

    def table(self) -> str:
        """All steps, the sum without downloads last."""
        lines = [f"{seconds:7.1f} s  {name}{' (downloads)' if load else ''}" for name, seconds, load in self._rows]
        total = sum(seconds for _, seconds, load in self._rows if not load)
        return "\n".join([*lines, f"{total:7.1f} s  in all, downloads apart"])


def say(text: str) -> None:
    """One line to the person watching."""
    print(text, flush=True)


def main() -> int:
    """Runs the demo."""
    options = _options()
    steps = Steps()
    begin = time.monotonic()
    try:
        _demo(options, steps)
        verdict = None
    except (AssertionError, LabError) as error:
        verdict = str(error)
    except KeyboardInterrupt:
        verdict = "interrupted"
    if not options.keep:
        for name in ("disk.qcow2", "memory", "raw.vmcore"):
            (WORK / name).unlink(missing_ok=True)
    say(f"\n{steps.table()}\n{time.monotonic() - begin:7.1f} s  by the clock\n")
    if verdict is not None:
        say(f"NOT AS IT SHOULD BE: {verdict}")
        return 1
    say("All as it should be: the machine died, came back, and its dump holds what it should.")
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="packaging/demo", description="A machine dies under kdumpd and comes back.")
    parser.add_argument("--symbols", action="store_true", help="open the dump in crash(8) (downloads about 280 MB)")
    parser.add_argument("--shell", action="store_true", help="leave a shell in the machine, before it is switched off")
    parser.add_argument("--keep", action="store_true", help="keep the disk and the raw memory in build/demo")
    return parser.parse_args()


def _demo(options: argparse.Namespace, steps: Steps) -> None:
    shutil.rmtree(WORK, ignore_errors=True)
    WORK.mkdir(parents=True)
    with steps.step("build the Debian package"):
        package = prepare.package()
        say(str(package))
    with steps.step("make a Debian disk image", download=True):
        base = image.base()
        say(f"{base.disk}: kernel {base.release(SERIES)}")
    with steps.step("get makedumpfile and crash of a newer Debian", download=True):
        say(" ".join(tools.program("makedumpfile")[-1:]))
    if options.symbols:
        with steps.step("get the kernel's debug symbols", download=True):
            vmlinux = vmcore.debug_symbols(base.release(SERIES))
    with steps.step("install the package in it with apt"):
        made = image.with_package(package, base)
    with circle.boot(
        made, WORK, fresh=True, series=SERIES, memory_mib=MEMORY_MIB, memory_file=WORK / "memory"
    ) as guest:  # fmt: skip
        marker, name = _live_through(guest, steps)
        if options.shell:
            with steps.step("a shell in the machine"):
                _shell(guest)
        with steps.step("switch the machine off"):
            guest.power_off()
    with steps.step("copy the crash folder out of the disk"):
        circle.copy_out(WORK / "disk.qcow2", f"{circle.CRASH_DIR}/{name}", WORK / "crash")
        folder = WORK / "crash" / name
        say(f"{folder}: {' '.join(sorted(path.name for path in folder.iterdir()))}")
    with steps.step("prove it"):
        say(proof.complete(folder))
        say(proof.marker(folder, marker))
        say(proof.page_set(folder, WORK / "raw.vmcore"))
        say(proof.accepted(folder))
        if options.symbols:
            shown, line = proof.opens(folder, vmlinux, marker)
            say(f"{shown}\n{line}")


def _live_through(guest: Machine, steps: Steps) -> tuple[str, str]:
    """Boots, arms, crashes, captures, comes back; the marker and the name of the crash folder."""
    with steps.step(f"boot with {circle.CRASHKERNEL}, wait for the service to arm"):
        guest.wait_ready()
        circle.wait_armed(guest)
    with steps.step("look at it"):
        _show(guest, "systemctl", "status", "kdumpd", "--no-pager", "--full")
        _show(guest, "kdumpctl", "status")
        boot_id = guest.run(["cat", "/proc/sys/kernel/random/boot_id"]).ok().strip()
    with steps.step("crash it: echo c > /proc/sysrq-trigger"):
        marker = circle.mark_log(guest)
        say(f"marker in the kernel log: {marker}")
        after = guest.console.mark()
        guest.console.echo = sys.stdout
        guest.crash()
        reference.save_raw_vmcore(guest, WORK / "memory", WORK / "raw.vmcore", after=after, timeout=120)
    with steps.step("the capture kernel saves its memory, the machine comes back"):
        circle.wait_back(guest, after)
        guest.console.echo = None
    with steps.step("look at what is left of it"):
        names = circle.crashes(guest)
        assert len(names) == 1, f"/var/crash holds {names}"
        listed = _show(guest, "kdumpctl", "list")
        assert "complete" in listed, f"kdumpctl list does not show a complete dump:\n{listed}"
        shown = _show(guest, "kdumpctl", "info")
        assert names[0] in shown, f"kdumpctl info does not name {names[0]}"
        _show(guest, "journalctl", "--list-boots", "--no-pager")
        _show(guest, "journalctl", "-u", "kdumpd", "-b", boot_id.replace("-", ""), "--no-pager", "-o", "short-precise")
        _show(guest, "journalctl", "-u", "kdumpd", "-b", "0", "--no-pager", "-o", "short-precise")
        again = guest.run(["cat", "/proc/sys/kernel/random/boot_id"]).ok().strip()
        assert again != boot_id, "the machine was not booted anew"
        circle.wait_armed(guest)
        _show(guest, "kdumpctl", "status")
    return marker, names[0]


def _show(guest: Machine, *argv: str) -> str:
    """Runs a command in the guest and shows it with its output, as on a terminal."""
    done = guest.run(list(argv))
    say(f"\n# {' '.join(argv)}\n{done.out.rstrip()}")
    return done.ok()


def _shell(guest: Machine) -> None:
    """Joins the terminal with the machine's console until Ctrl-] or power-off."""
    if not sys.stdin.isatty():
        raise LabError("--shell needs a terminal")
    say("the machine's console, root is logged in; press Enter; Ctrl-] leaves")
    keyboard = sys.stdin.fileno()
    before = termios.tcgetattr(keyboard)
    guest.console.mirror = lambda text: os.write(sys.stdout.fileno(), text.replace("\n", "\r\n").encode())
    try:
        tty.setraw(keyboard)
        while guest.alive():
            if select.select([keyboard], [], [], 0.5)[0]:
                keys = os.read(keyboard, 1024)
                if b"\x1d" in keys:
                    break
                guest.console.send(keys)
    finally:
        guest.console.mirror = None
        termios.tcsetattr(keyboard, termios.TCSADRAIN, before)


if __name__ == "__main__":
    sys.exit(main())
