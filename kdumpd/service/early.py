# SPDX-License-Identifier: GPL-2.0-or-later
"""Arms a machine that boots with what it was armed with before, while the daemon's other modules are still imported.

When the service has settled on what is to be loaded it notes that (`ready.json`), and beside it each fact that the
choice was made from: kernel and image by size and times, kdump.conf, the running kernel's release and command line,
processors, memory, reservation. Where a service that starts finds all of them as they were, and the kernel empty, the
same choice is loaded at once. Anything else is left to the engine, and so is all that may fail: it looks as always,
and does what is left to do.

Imports as little as the loader does: each module is time in which a crash would be lost.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

import kdumpd
from kdumpd.config.kexec_syscall import KexecSyscall
from kdumpd.errors import KdumpError, LoadLostError
from kdumpd.host.cmdline import read_boot_apicid, read_cmdline
from kdumpd.host.crypt_keys import is_in_use
from kdumpd.host.fadump import read_fadump
from kdumpd.host.kexec import KexecLoader, read_loaded
from kdumpd.host.kexec_pair import Pair, open_pair
from kdumpd.host.machine import now_usec, read_machine
from kdumpd.host.reservation import read_memory_bytes, read_reservation
from kdumpd.host.security import read_security
from kdumpd.host.topology import read_topology
from kdumpd.service.json_file import read_json, write_atomic
from kdumpd.service.load_notes import LoadNotes
from kdumpd.service.places import HELD_NAME, LOADED_NAME, LOADING_NAME, Places

READY_NAME = "ready.json"
_CONFIG, _DROPINS = "etc/kdump.conf", "etc/kdump.conf.d"  # of config/parse.py, which brings the whole language
_RECORD = "image.json"  # of image/record.py
# Firmware leaves some pages more or less at each boot. The kernel itself makes the list of memory for the dump as it
# loads; of the amount only the number of processors depends that the capture kernel gets.
_MEMORY_STEP = 64 << 20
_TEXTS = ("release", "image_id", "initrd_sha256", "cmdline", "syscall", "keys")


class Ready(NamedTuple):
    """What to load: the fields of a LoadedRecord that outlive a boot, and the kernel and image that the kept ones of it
    came from. `facts` are those of `deciding_facts` at that time.

    `reports` says that kdump.conf wants an unload past the service to be reported, not mended.
    """

    record: dict[str, Any]
    kernel: str
    initrd: str
    reports: bool
    facts: list[str]


class Armed(NamedTuple):
    """What was loaded, with what the journal wants to know. `again` says that somebody had unloaded it in this boot."""

    release: str
    image_id: str
    initrd: str
    reserved_bytes: int
    duration_usec: int
    again: bool = False


def deciding_facts(root: Path, kernel: str, initrd: str) -> list[str]:
    """All that decides whether, and how, this `kernel` and `initrd` are loaded; equal lists make equal choices."""
    machine = read_machine(root)
    topology = read_topology(root)
    dropins = root / _DROPINS
    try:
        names = sorted(os.listdir(dropins))
    except OSError:
        names = []
    files = [Path(kernel), Path(initrd), Path(initrd).with_name(_RECORD), root / _CONFIG]
    files += [dropins / name for name in names]
    return [
        f"kdumpd {kdumpd.__version__}",
        f"{machine.arch} {machine.release}",
        read_cmdline(root),
        f"cpus {topology.cpus}, booted by {read_boot_apicid(root)}",
        f"memory {round(read_memory_bytes(root) / _MEMORY_STEP)}",
        f"reserved {read_reservation(root).size_bytes}",
        *(f"{path} {_stamp(path)}" for path in files),
    ]


def _stamp(path: Path) -> str:
    """As freshness.py compares files. No inode: those of a FAT filesystem are others at each mount."""
    try:
        status = os.stat(path)
    except OSError:
        return "-"
    return f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"


def note_ready(state_dir: Path, ready: Ready) -> None:
    """Notes it for the next start, if it is not what is noted there. A disk that takes it not costs only time then."""
    path = state_dir / READY_NAME
    if read_json(path) != ready._asdict():
        with contextlib.suppress(OSError):
            write_atomic(path, json.dumps(ready._asdict(), indent=1) + "\n")


def _read_ready(state_dir: Path) -> Ready | None:
    raw = read_json(state_dir / READY_NAME)
    if raw is None:
        return None
    try:
        ready = Ready(**raw)
    except TypeError:
        return None
    if not isinstance(ready.record, dict) or not all(isinstance(ready.record.get(name), str) for name in _TEXTS):
        return None
    return ready if isinstance(ready.kernel, str) and isinstance(ready.initrd, str) else None


class Early:
    """One attempt, at the start of the service. `begin` looks and asks for the load, `wait` waits for its end; then
    `armed` is what came of it, None where nothing was loaded."""

    def __init__(self, places: Places, loader: KexecLoader) -> None:
        self._places = places
        self._loader = loader
        self._thread: threading.Thread | None = None
        self.armed: Armed | None = None

    def begin(self) -> None:
        """Asks for the load where it is sure to be the right one; never raises for what a machine may look like."""
        root, state_dir = self._places.root, self._places.state_dir
        if read_loaded(root) is not False:
            return
        ready = _read_ready(state_dir)
        if ready is None:
            return
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._loader.soon())
            again = self._may_load(ready)
            if again is None or ready.facts != deciding_facts(root, ready.kernel, ready.initrd):
                return
            work = stack.pop_all()
        self._thread = threading.Thread(target=self._load, args=(ready, again, work), name="early", daemon=True)
        self._thread.start()

    @property
    def began(self) -> bool:
        """Whether there is something to wait for."""
        return self._thread is not None

    def wait(self, seconds: float | None = None) -> bool:
        """Waits for the end of the load, so long at most; whether it is over, or was never begun."""
        if self._thread is None:
            return True
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _may_load(self, ready: Ready) -> bool | None:
        """None when it may not, or nobody knows; else whether ours was unloaded past the service in this boot."""
        root, run_dir = self._places.root, self._places.run_dir
        boot_id = read_machine(root).boot_id
        if not boot_id or read_fadump(root) or is_in_use(root) or not read_security(root).may_load:
            return None
        if ready.record["keys"] or ready.record["syscall"] == KexecSyscall.KEXEC_LOAD:
            return None
        if (run_dir / HELD_NAME).exists() or (run_dir / LOADING_NAME).exists():
            return None
        loaded = read_json(run_dir / LOADED_NAME)
        again = loaded is not None and loaded.get("boot_id") == boot_id
        return None if again and ready.reports else again

    def _load(self, ready: Ready, again: bool, work: contextlib.ExitStack) -> None:
        """In a thread of its own, which waits while the kernel and the loader work."""
        start = time.monotonic()
        notes = LoadNotes(self._places.run_dir)
        root = self._places.root
        now = {
            "boot_id": read_machine(root).boot_id,
            "loaded_usec": now_usec(),
            "memory": read_topology(root).memory,
        }
        record = {**ready.record, **now}
        with work:
            try:
                pair = Pair(
                    kernel=Path(ready.kernel),
                    initrd=Path(ready.initrd),
                    initrd_sha256=record["initrd_sha256"],
                    cmdline=record["cmdline"],
                    syscall=KexecSyscall(record["syscall"]),
                )
                with open_pair(pair) as opened:
                    notes.begin(record)
                    self._loader.load(opened)
                notes.commit(record)
            except LoadLostError:
                return  # nobody knows what the kernel holds; loading.json says so
            except (KdumpError, OSError, ValueError):
                # The engine tries as well, and tells why it does not work.
                if read_loaded(root) is False:
                    with contextlib.suppress(OSError):
                        notes.abandon()
                return
        self.armed = Armed(
            release=record["release"],
            image_id=record["image_id"],
            initrd=ready.initrd,
            reserved_bytes=read_reservation(root).size_bytes,
            duration_usec=int((time.monotonic() - start) * 1e6),
            again=again,
        )
