# SPDX-License-Identifier: GPL-2.0-or-later
"""A machine of files to which anything may happen, the service on it, and what is true about both.

The truth is kept by the acts themselves (who loaded what into the fake kernel), never by the code under test.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import random
import time
from collections.abc import Callable
from pathlib import Path

from engine_bench import Bench
from fake_machine import MIB, RELEASE, FakeMachine

from kdumpd.errors import KdumpError
from kdumpd.host.kexec import FILE_UNLOAD
from kdumpd.service.early import Early
from kdumpd.service.places import Places

GOOD = ("", "final_action halt\n", "core_collector makedumpfile -d 1\n", "on_unload report\n", "bogus 1\n")
BAD = ("path relative\n", "final_action dance\n", "path /a\npath /b\n")
_IOMEM = "00001000-7fffffff : System RAM\n  60000000-6fffffff : Crash kernel\n100000000-17fffffff : System RAM\n"


@dataclasses.dataclass(frozen=True, slots=True)
class Held:
    """What the fake kernel holds: by whom, and of a machine with how many ranges of memory and processors."""

    ours: bool
    memory: int
    cpus: int


class World(Bench):
    """The machine, the service, and what is true about them."""

    def __init__(self, root: Path, pick: random.Random) -> None:
        self.pick = pick
        self.holds: Held | None = None
        self.memory = 0
        self.cpus = 0
        self.bad_config = False
        self.new_names = False
        self.rehearsed: tuple[str, str] | None = None  # image and command line that delivered a dump
        super().__init__(FakeMachine(root))
        self.kernel.heard = self._loaded

    def restart(self) -> None:
        """A new service, which may load before it looks."""
        early = Early(Places.below(self.machine.root), self.kernel.loader())
        early.begin()
        early.wait()
        super().restart()

    def _loaded(self, flags: int, code: int) -> None:
        """The fake kernel did what the service asked for, or failed with `code`, which leaves it empty as well."""
        gone = code != 0 or bool(flags & FILE_UNLOAD)
        self.holds = None if gone else Held(True, self.memory, self.cpus)

    def act(self, action: Callable[[], None]) -> None:
        """An act of the service, refused or not."""
        with contextlib.suppress(KdumpError):
            action()

    def quiet(self) -> None:
        """No event for a while: what the worker does at the end of a burst."""
        self.act(self.engine.check)

    def shows_loaded(self) -> bool:
        """The truth as the kernel tells it."""
        name = "kexec/crash_loaded" if self.new_names else "kexec_crash_loaded"
        path = self.machine.root / "sys/kernel" / name
        return path.exists() and path.read_text().strip() == "1"

    def step(self) -> str:
        """Something happens; its name."""
        name, event = self.pick.choice(self._events())
        event()
        return name

    def _events(self) -> list[tuple[str, Callable[[], None]]]:
        return [
            ("unload behind its back", self._unload_behind),
            ("load by another", self._load_by_other),
            ("boot", self._boot),
            ("restart", self.restart),
            ("killed while loading", self._killed),
            ("damage", self._damage),
            ("remove the image", lambda: self._image().unlink(missing_ok=True)),
            ("good configuration", self._good_config),
            ("bad configuration", self._bad_config),
            ("load fails", lambda: self.kernel.fail.append(self.pick.choice([errno.ENOMEM, errno.ENOKEY, 0]))),
            ("build fails", lambda: self.builder.fail.append("The disk is full")),
            *[("rehearse", self._rehearse)] * 5,
            ("load", lambda: self.act(self.engine.load)),
            ("unload", lambda: self.act(self.engine.unload)),
            ("reload", lambda: self.act(self.engine.reload)),
            ("rebuild", lambda: self.act(self.engine.rebuild)),
            ("look", lambda: self.act(self.engine.look)),
            ("hangup", lambda: self.act(lambda: self.engine.check(patient=False))),
            ("loading disabled", lambda: self._switch("proc/sys/kernel/kexec_load_disabled", 0.2)),
            ("plug memory", self._plug_memory),
            ("plug a processor", self._plug_cpu),
            ("crash_hotplug", self._crash_hotplug),
            ("reservation", self._reserve),
            ("kernel file", self._kernel_file),
            ("oops sysctl", lambda: self._switch("proc/sys/kernel/panic_on_oops", 0.5)),
            ("boot loader", self._boot_loader),
            ("fadump", lambda: self._switch("sys/kernel/fadump_enabled", 0.1)),
            ("new names in sysfs", self._rename_sysfs),
            ("crash kexec", self._support),
        ]

    def pair(self) -> dict[str, str]:
        """The image and the command line that the kernel took last."""
        found: dict[str, str] = json.loads((self.machine.root / "held.json").read_text())
        return found

    def _rehearse(self) -> None:
        """What the kernel holds is tried in a scratch machine, well or not."""
        loaded = self.machine.root / "run/kdumpd/loaded.json"
        if self.holds is None or not self.holds.ours or not loaded.exists():
            return
        held = self.pair()
        good = self.pick.random() < 0.7
        self.rehearsed = (held["initrd_sha256"], held["cmdline"]) if good else None
        record = json.loads(loaded.read_text())
        names = ("release", "image_id", "kernel_sha256")
        fields = {**{name: record[name] for name in names}, **held, "accel": "tcg", "exchanged": [], "seconds": 1.0}
        fields |= {"problem": "" if good else "no dump came"}
        fields |= dict.fromkeys(("time_usec", "reserved_bytes", "dump_bytes", "lowest_available_bytes"), 1)
        self.machine.write("var/lib/kdumpd/rehearsal.json", json.dumps(fields))

    def _switch(self, path: str, on: float) -> None:
        self.machine.write(path, "1" if self.pick.random() < on else "0")

    def _image(self) -> Path:
        return self.machine.root / "var/lib/kdumpd" / RELEASE / "initrd"

    def show(self, loaded: bool) -> None:
        """Lets the kernel say that it holds a capture kernel, or none, by the name that it has for this now."""
        if self.new_names:
            self.machine.write("sys/kernel/kexec/crash_loaded", f"{int(loaded)}\n")
        else:
            self.machine.crash_loaded(loaded)

    def _unload_behind(self) -> None:
        self.holds = None
        self.show(False)

    def _load_by_other(self) -> None:
        """Seen empty before: who replaces ours between two looks cannot be told from us."""
        if self.holds is None or not self.holds.ours:
            self.act(self.engine.look)
            self.holds = Held(False, self.memory, self.cpus)
            self.show(True)

    def _boot(self, *, supported: bool = True) -> None:
        self._unload_behind()
        self.machine.write("proc/sys/kernel/random/boot_id", f"{self.pick.random()}\n")
        if not supported:
            for name in ("kexec_crash_loaded", "kexec/crash_loaded"):
                (self.machine.root / "sys/kernel" / name).unlink(missing_ok=True)
        self.restart()

    def _killed(self) -> None:
        """SIGKILL between the note that a load begins and the note that it ended."""
        run = self.machine.root / "run/kdumpd"
        if (run / "loaded.json").exists() and self.shows_loaded():
            (run / "loading.json").write_text((run / "loaded.json").read_text())
            long_ago = time.time() - 3600  # its loader is gone, too
            os.utime(run / "loading.json", (long_ago, long_ago))
        self.restart()

    def _damage(self) -> None:
        if self._image().exists():
            self._image().write_bytes(b"x")

    def _good_config(self) -> None:
        self.bad_config = False
        self.machine.config(self.pick.choice(GOOD))

    def _bad_config(self) -> None:
        if self.pick.random() < 0.5:
            return
        self.bad_config = True
        self.machine.config(self.pick.choice(BAD))

    def _plug_memory(self) -> None:
        self.memory += 1
        starts = [(2 << 32) + (index << 28) for index in range(self.memory)]
        more = [f"{start:x}-{start + 0xFFEFFFF:x} : System RAM\n" for start in starts]
        self.machine.write("proc/iomem", _IOMEM + "".join(more))

    def _plug_cpu(self) -> None:
        self.cpus += 1
        self.machine.write("sys/devices/system/cpu/present", f"0-{1 + self.cpus}\n")

    def _crash_hotplug(self) -> None:
        kind = self.pick.choice(["cpu", "memory"])
        self.machine.write(f"sys/devices/system/{kind}/crash_hotplug", self.pick.choice("01"))

    def _reserve(self) -> None:
        size = self.pick.choice([256] * 8 + [64, 0])
        self.machine.write("sys/kernel/kexec_crash_size", f"{size * MIB}\n")

    def _kernel_file(self) -> None:
        path, away = (self.machine.root / f"boot/{name}{RELEASE}" for name in ("vmlinuz-", "away-"))
        if path.exists() and self.pick.random() < 0.3:
            path.rename(away)
        elif away.exists():
            away.rename(path)

    def _boot_loader(self) -> None:
        words = self.pick.choice(["", "crashkernel=256M", "crashkernel=1G"])
        self.machine.write("boot/grub/grub.cfg", f"linux /vmlinuz ro {words}\n")

    def _rename_sysfs(self) -> None:
        """What a kernel from v6.19 on shows."""
        loaded = self.shows_loaded()
        self.new_names = not self.new_names
        if self.new_names:
            self.machine.crash_loaded(None)
        else:
            (self.machine.root / "sys/kernel/kexec/crash_loaded").unlink(missing_ok=True)
        self.kernel.new_names = self.new_names
        self.show(loaded)

    def _support(self) -> None:
        """A kernel without crash kexec, until the next boot."""
        if self.pick.random() < 0.1:
            self._boot(supported=False)
        elif not self.shows_loaded():
            self.show(False)
