# SPDX-License-Identifier: GPL-2.0-or-later
"""The scratch machine: QEMU without network, display and monitor, whose console goes to a file that is followed here.

Bounded in time by whoever waits, in memory by -m, on disk by the sizes of its disks and the length of its console.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from kdumpd.errors import KdumpError, UnsupportedError, os_reason
from kdumpd.rehearsal.scratch import Bus

# uname -m -> program, machine, console, package (Debian's name, then Fedora's).
_MACHINES = {
    "x86_64": ("qemu-system-x86_64", "q35", "ttyS0", "qemu-system-x86 or qemu-system-x86-core"),
    "aarch64": (
        "qemu-system-aarch64",
        "virt,gic-version=max",
        "ttyAMA0",
        "qemu-system-arm or qemu-system-aarch64-core",
    ),
}
_PLACES = "/usr/sbin:/usr/bin:/sbin:/bin:/usr/local/bin:/usr/libexec"
_MOST_CONSOLE_BYTES = 16 << 20
_PR_SET_PDEATHSIG = 1
_STEP_SECONDS = 0.2


class StageError(KdumpError):
    """The scratch machine did not come as far as it should have."""


def console_of(arch: str) -> str:
    """The name of the console's device. Raises UnsupportedError."""
    return _machine(arch)[2]


def find_program(arch: str) -> str:
    """The path of QEMU for `arch`. Raises UnsupportedError with the package that has it."""
    name, _, _, package = _machine(arch)
    found = shutil.which(name, path=os.pathsep.join(filter(None, [os.environ.get("PATH"), _PLACES])))
    if found is None:
        raise UnsupportedError(f"A rehearsal needs {name}, which is not installed", hint=f"install {package}")
    return found


def _machine(arch: str) -> tuple[str, str, str, str]:
    if arch not in _MACHINES:
        raise UnsupportedError(f"kdumpd knows no scratch machine for {arch}", hint="kdumpctl test crashes this one")
    return _MACHINES[arch]


class Machine:
    """One that runs; a context manager, whose end is the machine's. Raises KdumpError when QEMU does not start."""

    def __init__(
        self,
        arch: str,
        *,
        accel: str,
        kernel: Path,
        initrd: Path,
        append: str,
        memory_mib: int,
        bus: Bus,
        disks: Sequence[Path],
        log: Path,
    ) -> None:
        self._log = log
        self._at = log.stat().st_size if log.exists() else 0
        self._text = ""
        _, machine, console, _ = _machine(arch)
        argv = [
            *(find_program(arch), "-nodefaults", "-no-user-config", "-nic", "none", "-display", "none", "-no-reboot"),
            *("-machine", machine, "-accel", accel, "-cpu", "host" if accel == "kvm" else "max"),
            *("-smp", "1", "-m", f"{memory_mib}M", "-kernel", str(kernel), "-initrd", str(initrd)),
            *("-append", f"console={console} {append}"),
            *("-chardev", f"file,id=console,path={log},append=on", "-serial", "chardev:console"),
        ]
        for controller in bus.controller:
            argv += ["-device", controller]
        for number, disk in enumerate(disks):
            name = f"disk{number}"
            # A comma would end the name; the scratch folder has none.
            argv += ["-drive", f"file={disk},format=raw,if=none,id={name},cache=unsafe"]
            argv += ["-device", bus.device.format(name)]
        self._errors = log.with_name(f"{log.name}.qemu").open("w+b")
        try:
            self._process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=self._errors,
                stderr=self._errors,
                env={"PATH": _PLACES, "LC_ALL": "C.UTF-8"},
                preexec_fn=_die_with_parent,
            )
        except OSError as error:
            self._errors.close()
            raise KdumpError(f"{argv[0]} cannot be started: {os_reason(error)}") from error

    def wait_for(self, patterns: str, seconds: float) -> re.Match[str]:
        """The first match of `patterns` in the lines that the console has shown and not been asked about before.

        Raises StageError when the machine ends, or `seconds` are over, before there is one.
        """
        deadline = time.monotonic() + seconds
        wanted = re.compile(patterns, re.MULTILINE)
        while True:
            ended = self._process.poll() is not None
            self._read()
            if found := wanted.search(self._text):
                self._text = self._text[found.end() :]
                return found
            if ended:
                raise StageError(f"the scratch machine ended{self._said()}")
            if time.monotonic() > deadline:
                raise StageError(f"nothing came of it within {seconds:.0f} s")
            time.sleep(_STEP_SECONDS)

    def wait_ended(self, seconds: float) -> None:
        """Until the machine is off. Raises StageError."""
        deadline = time.monotonic() + seconds
        while self._process.poll() is None:
            self._read()
            if time.monotonic() > deadline:
                raise StageError(f"the scratch machine was not off within {seconds:.0f} s")
            time.sleep(_STEP_SECONDS)

    def _read(self) -> None:
        with self._log.open("rb") as file:
            file.seek(self._at)
            data = file.read(_MOST_CONSOLE_BYTES)
        self._at += len(data)
        self._text += data.decode(errors="replace").replace("\r", "")
        if self._at > _MOST_CONSOLE_BYTES:
            raise StageError(f"its console went on for more than {_MOST_CONSOLE_BYTES >> 20} MiB")

    def _said(self) -> str:
        """What QEMU itself printed last."""
        self._errors.seek(0)
        lines = self._errors.read(1 << 16).decode(errors="replace").strip().splitlines()
        return f": {lines[-1]}" if lines else ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        self._process.wait()
        self._errors.close()


def _die_with_parent() -> None:
    """prctl(2): whatever becomes of this program, the machine does not outlive it."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
