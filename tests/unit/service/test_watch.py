# SPDX-License-Identifier: GPL-2.0-or-later
"""The real inotify, device events and list of mounts, in a main loop."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fake_machine import RELEASE, FakeMachine
from gi.repository import GLib

from kdumpd.host import inotify
from kdumpd.service.places import Places
from kdumpd.service.watch import Watcher
from kdumpd.service.watchlist import Rule, watch_list

TOP = Path(__file__).resolve().parents[3]


class Heard:
    """A watcher on the machine of files, and what it told."""

    def __init__(self, machine: FakeMachine) -> None:
        self.machine = machine
        self.kinds: list[str] = []
        self.events, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        ours.setblocking(False)
        self.source = str(machine.root / "lib-of-the-image.so")
        machine.write("lib-of-the-image.so", "1")
        self.watcher = Watcher(self.kinds.append, root=machine.root, uevents=ours)
        self.watcher.attach()
        self.update()

    def update(self) -> None:
        places = Places.below(self.machine.root)
        crashes = self.machine.root / "var/crash"
        self.watcher.update(watch_list(places, RELEASE, crashes=crashes, sources=[self.source]))

    def after(self, act: Callable[[], object], seconds: float = 2.0) -> set[str]:
        """The kinds told after `act`, up to the first and what comes right with it."""
        self.settle()
        act()
        deadline = time.monotonic() + seconds
        while not self.kinds and time.monotonic() < deadline:
            GLib.MainContext.default().iteration(False)
            time.sleep(0.005)
        self.settle(clear=False)
        found = set(self.kinds)
        self.kinds.clear()
        return found

    def settle(self, *, clear: bool = True) -> None:
        for _ in range(20):
            while GLib.MainContext.default().iteration(False):
                pass
            time.sleep(0.002)
        if clear:
            self.kinds.clear()


@pytest.fixture
def heard(machine: FakeMachine) -> Iterator[Heard]:
    found = Heard(machine)
    yield found
    found.watcher.close()
    found.events.close()


def test_each_kind_of_change_is_told(heard: Heard) -> None:
    machine, root = heard.machine, heard.machine.root
    machine.write("proc/sys/kernel/panic_on_oops", "0\n")
    for path in ("sys/kernel/kexec_crash_size", "usr/sbin/kexec", "boot/grub/grub.cfg", "etc/hosts"):
        machine.write(path, "0\n")
    heard.update()
    changes: list[tuple[str, Callable[[], object]]] = [
        ("config", lambda: machine.config("final_action halt\n")),
        ("config", lambda: machine.write("etc/kdump.conf.d/a.conf", "path /x\n")),
        ("kernel", lambda: machine.write("boot/vmlinuz-6.99", "x")),
        ("kernel", lambda: (root / f"usr/lib/modules/{RELEASE}/modules.dep").unlink()),
        ("boot", lambda: machine.write("boot/grub/grub.cfg", "linux /x\n")),
        ("files", lambda: machine.write("lib-of-the-image.so", "2")),
        ("crashes", lambda: (root / "var/crash/new").mkdir()),
        ("sysctl", lambda: machine.write("proc/sys/kernel/panic_on_oops", "1\n")),
        ("reservation", lambda: machine.write("sys/kernel/kexec_crash_size", "1\n")),
        ("mounts", lambda: machine.write("proc/self/mountinfo", "")),
        ("block", lambda: (root / "dev/disk/by-uuid/1234").symlink_to("../../nvme0n1")),
    ]
    for kind, act in changes:
        assert kind in heard.after(act), kind
        heard.update()
    assert heard.after(lambda: machine.write("etc/hosts", "x"), 0.2) == set()


def test_a_folder_that_comes_later_is_found(heard: Heard) -> None:
    folder = heard.machine.root / "var/lib/kdumpd" / RELEASE
    assert "image" in heard.after(lambda: folder.mkdir(parents=True))
    heard.update()
    assert heard.after(lambda: (folder / "initrd").write_bytes(b"x")) == {"image"}


def test_what_was_not_watched_before_is_looked_at_once_more(heard: Heard) -> None:
    """It may have changed between the look that named it and the watch."""
    folder = heard.machine.root / "var/lib/kdumpd" / RELEASE
    heard.after(lambda: folder.mkdir(parents=True))
    heard.update()
    assert heard.kinds == ["watch"]
    heard.kinds.clear()
    heard.update()
    assert heard.kinds == []


def test_a_file_replaced_by_a_rename_and_a_folder_made_again_stay_watched(heard: Heard) -> None:
    root = heard.machine.root
    heard.machine.config("")
    heard.update()
    for text in ("path /a\n", "path /b\n"):
        heard.machine.write("etc/new", text)
        assert "config" in heard.after(lambda: (root / "etc/new").replace(root / "etc/kdump.conf"))
    crashes = root / "var/crash"
    assert "crashes" in heard.after(crashes.rmdir)
    heard.update()
    assert "crashes" in heard.after(crashes.mkdir)
    heard.update()
    assert "crashes" in heard.after((crashes / "x").mkdir)


def test_device_events_are_told_by_their_subsystem(heard: Heard) -> None:
    def send(subsystem: str) -> Callable[[], object]:
        return lambda: heard.events.send(f"add@/d\0ACTION=add\0DEVPATH=/d\0SUBSYSTEM={subsystem}\0".encode())

    assert heard.after(send("memory")) == {"memory"}
    assert heard.after(send("block")) == {"block"}
    assert heard.after(send("usb"), 0.2) == set()


def test_a_program_that_ends_is_seen(heard: Heard, tmp_path: Path) -> None:
    """How `kexec -p -u` is noticed: the kernel closes the file of a program when its process is gone."""
    program = heard.machine.root / "usr/sbin/kexec"
    program.parent.mkdir(parents=True)
    shutil.copy("/bin/true", program)
    heard.update()
    assert heard.after(lambda: subprocess.run([program], check=True)) == {"loaded"}


def test_a_sysctl_of_the_real_kernel_is_seen_also_after_its_dentry_was_dropped() -> None:
    path = Path("/proc/sys/kernel/panic_on_warn")
    kinds: list[str] = []
    watcher = Watcher(kinds.append)
    watcher.attach()
    try:
        watcher.update((Rule(path=path, mask=inotify.MODIFY, kind="sysctl"),))
        Path("/proc/sys/vm/drop_caches").write_text("2")
        path.write_text(path.read_text())
        deadline = time.monotonic() + 2
        while "sysctl" not in kinds and time.monotonic() < deadline:
            GLib.MainContext.default().iteration(False)
        assert "sysctl" in kinds
    finally:
        watcher.close()


_MOUNT = """
import ctypes, os, subprocess, time
from gi.repository import GLib
from kdumpd.service.watch import Watcher
kinds = []
watcher = Watcher(kinds.append)
watcher.attach()
def turn(seconds):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and not kinds:
        GLib.MainContext.default().iteration(False)
        time.sleep(0.005)
turn(0.1)
kinds.clear()
subprocess.run(["mount", "-t", "tmpfs", "none", "/mnt"], check=True)
turn(2)
print(*kinds)
"""


def test_a_mount_is_seen_through_poll() -> None:
    """In a mount namespace of its own, so that nobody else sees it."""
    done = subprocess.run(
        ["unshare", "-m", sys.executable, "-c", _MOUNT], capture_output=True, text=True, check=True, cwd=TOP
    )
    assert "mounts" in done.stdout.split()


def test_it_goes_on_when_watches_run_out(heard: Heard, caplog: pytest.LogCaptureFixture) -> None:
    def full(path: Path, mask: int) -> int:
        raise OSError(28, os.strerror(28), str(path))

    assert heard.watcher.inotify is not None
    heard.watcher.inotify.add = full  # type: ignore[method-assign]
    heard.update()
    assert caplog.text.count("max_user_watches") == 1
