# SPDX-License-Identifier: GPL-2.0-or-later
"""The main job, step by step: boot, arm, crash, capture, come back, copy the crash out.

Knows kdumpd only from outside, as an operator does: its commands, its files, what it says on the console.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import IO, Any

from . import image
from .aptroot import LabError, run
from .qemu import Done, Machine, overlay

ARM_TIMEOUT_S = 180.0
CAPTURE_TIMEOUT_S = 300.0
BACK_TIMEOUT_S = 240.0
CRASH_DIR = "/var/crash"
CRASHKERNEL = "crashkernel=256M"
MANAGER = ("org.kdumpd.Kdump1", "/org/kdumpd/Kdump1", "org.kdumpd.Kdump1.Manager")  # for busctl(1)
CAPTURE_UP = r"\[kdumpd\] capture kernel is up"


def boot(
    made: image.Image,
    folder: Path,
    *,
    fresh: bool = False,
    series: str = "6.1",
    words: str = CRASHKERNEL,
    memory_mib: int = 1024,
    memory_slots: int = 0,
    memory_file: Path | None = None,
    disks: tuple[tuple[Path, str], ...] = (),
    cards: tuple[str, ...] = (),
    echo: IO[str] | None = None,
    again: bool = False,
    comes_back: bool = True,
) -> Machine:
    """A machine on an overlay of `made`, at `folder`/disk.qcow2; `words` go on its kernel command line, `cards` are
    words for QEMU's.

    Unless `fresh` it was armed once before, with kernel 6.1, so that a capture image exists. With
    `again` it is the machine that was there before: its disk as it is, maybe with another kernel. One that need not
    `comes_back` ends where a capture reboots it: what another boot of it would show is on its disk.
    """
    disk = folder / "disk.qcow2"
    if not again:
        overlay(made.disk if fresh else armed_disk(made), disk)
    return Machine(
        kernel=made.kernel(series),
        initrd=made.initrd(series),
        disks=[(disk, "qcow2"), *disks],
        words=cards,
        append=f"root=UUID={image.ROOT_UUID} ro console=ttyS0 {words}".rstrip(),
        memory_mib=memory_mib,
        memory_slots=memory_slots,
        memory_file=memory_file,
        log=folder / "console.log",
        echo=echo,
        restarts=comes_back,
    )


def armed_disk(made: image.Image) -> Path:
    """The disk of a machine that was booted, armed and shut down: building the image takes long, so it is done once."""
    wanted = made.folder / "armed.raw"
    with (made.folder / "armed.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not wanted.exists():
            scratch = Path(tempfile.mkdtemp(dir=made.folder))
            try:
                with boot(made, scratch, fresh=True) as guest:
                    guest.wait_ready()
                    wait_armed(guest, 3 * ARM_TIMEOUT_S)  # the one build from nothing
                    guest.power_off()
                argv = ["qemu-img", "convert", "-O", "raw", str(scratch / "disk.qcow2"), str(scratch / "raw")]
                run(argv, timeout=300)
                (scratch / "raw").rename(wanted)
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
    return wanted


def status(guest: Machine) -> dict[str, Any]:
    """What `kdumpctl status --json` says."""
    done = guest.run(["kdumpctl", "status", "--json"])
    try:
        answer: dict[str, Any] = json.loads(done.out)
    except ValueError:
        raise AssertionError(f"kdumpctl status --json: exit {done.rc}\n{done.out}{done.err}") from None
    return answer


def wait_armed(guest: Machine, timeout: float = ARM_TIMEOUT_S) -> Done:
    """Waits until `kdumpctl status` ends with 0, which means armed, with what the configuration asks for; its text."""
    return _wait_status(guest, lambda done: done.rc == 0 and "loaded-stale" not in done.out, timeout)


def wait_said(guest: Machine, words: str, timeout: float = ARM_TIMEOUT_S) -> Done:
    """Waits until `kdumpctl status` says `words` (blanks and line ends count as one blank)."""
    return _wait_status(guest, lambda done: words in flat(done.out), timeout)


def _wait_status(guest: Machine, good: Any, timeout: float) -> Done:
    deadline = time.monotonic() + timeout
    while True:
        before = _on_the_bus(guest)
        done = guest.run(["kdumpctl", "status"])
        if good(done):
            return done
        if time.monotonic() > deadline:
            journal = guest.run(["journalctl", "-u", "kdumpd", "-n", "40", "--no-pager"]).out
            raise AssertionError(f"not within {timeout:.0f} s; kdumpctl status:\n{done.out}{done.err}\n{journal}")
        # Python takes seconds of an emulated processor, which what is waited for needs itself.
        again = time.monotonic() + 15
        while _on_the_bus(guest) == before and time.monotonic() < again:
            time.sleep(1)


def _on_the_bus(guest: Machine) -> str:
    """What the service says in short; nothing when it is not there."""
    return guest.run(["busctl", "--auto-start=no", "get-property", *MANAGER, "State", "Reasons"]).out


def wait_for(guest: Machine, shell: str, what: str, timeout: float = 180) -> None:
    """Waits until a command of sh succeeds in the guest."""
    deadline = time.monotonic() + timeout
    while guest.run(["/bin/sh", "-c", shell]).rc != 0:
        if time.monotonic() > deadline:
            journal = guest.run(["journalctl", "-b", "-n", "40", "--no-pager"]).out
            raise AssertionError(f"waited in vain for {what}:\n{journal}")
        time.sleep(1)


def flat(text: str) -> str:
    """Text without its line breaks and indentation, to look for sentences in."""
    return " ".join(text.split())


def wait_journal(guest: Machine, words: str, timeout: float = 60.0) -> None:
    """Waits until the service has told the journal `words`."""
    deadline = time.monotonic() + timeout
    while words not in (said := flat(guest.run(["journalctl", "-u", "kdumpd", "--no-pager", "-o", "cat"]).ok())):
        assert time.monotonic() < deadline, f"the journal lacks {words!r}:\n{said}"
        time.sleep(1)


def resident_kib(guest: Machine) -> int:
    """KiB of the service's memory that is resident, counted exactly, which VmRSS is not."""
    pid = guest.run(["systemctl", "show", "-P", "MainPID", "kdumpd"]).ok().strip()
    lines = guest.run(["cat", f"/proc/{pid}/smaps_rollup"]).ok().splitlines()
    (size,) = [int(line.split()[1]) for line in lines if line.startswith("Rss:")]
    return size


def wait_small(guest: Machine, limit_kib: int, timeout: float = 60.0) -> None:
    """Waits until the service holds less than that: what a look takes it gives back, at its end."""
    deadline = time.monotonic() + timeout
    while (size := resident_kib(guest)) >= limit_kib:
        assert time.monotonic() < deadline, f"the service holds {size} KiB"
        time.sleep(1)


def mark_log(guest: Machine) -> str:
    """Writes a random line to the kernel log, and makes the journal keep what it has."""
    marker = f"kdumpd-marker-{os.urandom(8).hex()}"
    guest.run(["/bin/sh", "-c", f"echo {marker} > /dev/kmsg"]).ok()
    guest.run(["journalctl", "--sync"]).ok()
    guest.run(["sync"]).ok()
    return marker


def wait_back(guest: Machine, after: int, *, timeout: float = CAPTURE_TIMEOUT_S + BACK_TIMEOUT_S) -> None:
    """Waits until the crashed machine has captured, rebooted and takes commands again."""
    up = guest.console.wait_for(CAPTURE_UP, 120, after=after)
    booted = guest.console.wait_for(r"Linux version", timeout, after=up.end())
    guest.wait_ready(BACK_TIMEOUT_S, after=booted.end())


def wait_captured(guest: Machine, after: int, *, timeout: float = CAPTURE_TIMEOUT_S) -> None:
    """Waits until a machine that does not come back has captured its crash, and is over."""
    guest.console.wait_for(CAPTURE_UP, 120, after=after)
    guest.wait_ended(timeout)
    assert "[kdumpd] final action: reboot" in guest.console.text[after:], guest.console.text[-3000:]


def manifests(folder: Path) -> dict[str, dict[str, Any]]:
    """The manifests of all crashes on the disk of a machine that is over, by their names; `folder` is the machine's."""
    wanted = folder / f"over-{os.urandom(4).hex()}"
    copy_out(folder / "disk.qcow2", CRASH_DIR, wanted)
    found = {path.parent.name: json.loads(path.read_text()) for path in sorted(wanted.rglob("manifest.json"))}
    shutil.rmtree(wanted)
    return found


def crashes(guest: Machine) -> list[str]:
    """The names of the crash folders."""
    return guest.run(["/bin/sh", "-c", f"cd {CRASH_DIR} && ls"]).ok().split()


def copy_out(disk: Path, inside: str, wanted: Path) -> None:
    """Copies a folder out of the disk of a machine that is off, with debugfs(8), so without mounting it."""
    wanted.mkdir(parents=True)
    raw = disk.with_suffix(".raw")
    try:
        run(["qemu-img", "convert", "-O", "raw", str(disk), str(raw)], timeout=300)
        said = run(["debugfs", "-R", f'rdump "{inside}" "{wanted}"', str(raw)], timeout=300)
    finally:
        raw.unlink(missing_ok=True)
    if not (wanted / Path(inside).name).exists():
        shutil.rmtree(wanted)
        raise LabError(f"{inside} is not on the disk: {said}")
