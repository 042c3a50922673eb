# SPDX-License-Identifier: GPL-2.0-or-later
"""One QEMU machine: boot, console, commands inside, power, memory.

Knows QEMU's command line and QMP, nothing of kdumpd. Every wait has an end, and the process that was
started is ended by its own process group.
"""

from __future__ import annotations

import atexit
import base64
import contextlib
import dataclasses
import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from .aptroot import CACHE, LabError, run
from .console import Console, MachineLostError

# Program, machine and the name of the serial console, by Debian's name of the architecture.
MACHINES = {
    "amd64": ("qemu-system-x86_64", "q35", "ttyS0"),
    "arm64": ("qemu-system-aarch64", "virt", "ttyAMA0"),
}
CONNECT_TIMEOUT_S = 30.0
QMP_TIMEOUT_S = 120.0
# A machine nobody ended in this time is ended by timeout(1), whatever became of its test.
LIFE_S = 1500
PROBE_S = 25.0
CHANNELS = ("commands", "qmp")
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """What a command inside the guest came to."""

    argv: tuple[str, ...]
    rc: int
    out: str
    err: str

    def ok(self) -> str:
        """stdout of a command that has to succeed."""
        if self.rc != 0:
            raise AssertionError(f"in the guest: {' '.join(self.argv)}: exit {self.rc}\n{self.out}{self.err}")
        return self.out


class Machine:
    """A running guest with an NVMe root disk. A context manager: leaving it ends the machine.

    `memory_slots` are for `plug_memory`. `disks` are (path, format) pairs: nvme0n1, nvme1n1, ... in this order;
    `devices` are words for QEMU's -device, `words` any others. A guest that reboots gets a new QEMU process, as cold as
    a machine that was switched off and on: QEMU 10.0 under TCG sometimes dies in a warm reset. Without `restarts` a
    reboot is the end of the machine.
    """

    def __init__(
        self,
        *,
        kernel: Path,
        disks: Sequence[tuple[Path, str]],
        append: str,
        log: Path,
        initrd: Path | None = None,
        memory_mib: int = 2048,
        memory_slots: int = 0,
        cpus: int = 2,
        cpu: str = "max",
        accel: str | None = None,
        echo: IO[str] | None = None,
        memory_file: Path | None = None,
        architecture: str = "amd64",
        devices: Sequence[str] = (),
        words: Sequence[str] = (),
        restarts: bool = True,
    ) -> None:
        self.append = append
        self._restarts = restarts
        self._folder = Path(tempfile.mkdtemp(prefix="kdumpd-vm-"))
        program, machine, _ = MACHINES[architecture]
        if accel is None:
            accel = accelerator(kernel) if architecture == "amd64" else "tcg"
        argv = [
            "timeout", "--signal=KILL", str(LIFE_S), program, "-action", "reboot=shutdown",
            "-nodefaults", "-no-user-config", "-display", "none", "-machine", machine,
            *_accel_words(accel),
            "-cpu", cpu, "-smp", str(cpus), "-m", _memory(memory_mib, memory_slots),
            "-kernel", str(kernel), "-append", append,
        ]  # fmt: skip
        if initrd is not None:
            argv += ["-initrd", str(initrd)]
        if memory_file is not None:
            # The guest's memory as a file: what it held at the crash can be read from outside.
            argv += [
                "-object", f"memory-backend-file,id=ram,size={memory_mib}M,mem-path={memory_file},share=on",
                "-machine", "memory-backend=ram",
            ]  # fmt: skip
        for index, (path, form) in enumerate(disks):
            drive = f"file={path},format={form},if=none,id=disk{index},cache=unsafe,discard=unmap,detect-zeroes=unmap"
            # Below a port of its own, so that `device_del nvme1` can pull it out.
            argv += ["-drive", drive, "-device", f"pcie-root-port,id=port{index},chassis={index + 1},slot={index + 1}"]
            argv += ["-device", f"nvme,id=nvme{index},bus=port{index},drive=disk{index},serial=lab{index}"]
        for name in CHANNELS:
            argv += ["-chardev", f"socket,id={name},path={self._folder / name}"]
        # A file takes at once what the guest says. A socket is full after some hundred bytes that come one by one: then
        # QEMU 10.0 tries again, and once nothing more came.
        self._printed = self._folder / "console"
        keys = self._folder / "keys"
        os.mkfifo(keys)
        self._keys = keys.open("r+b", buffering=0)  # a writer, so that QEMU does not wait for one
        argv += ["-chardev", f"file,id=console,path={self._printed},input-path={keys}"]
        argv += ["-serial", "chardev:console", "-mon", "chardev=qmp,mode=control"]
        # Not a second serial port: under TCG its interrupts get lost now and then.
        argv += ["-device", "virtio-serial-pci", "-device", "virtserialport,chardev=commands,name=lab.commands"]
        self._argv = [*argv, *(word for device in devices for word in ("-device", device)), *words]
        self._lock = threading.Lock()  # held while QEMU is started or ended
        self._qmp_lock = threading.Lock()
        self._ending = False
        self._over = threading.Event()
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115, lives as long as the machine
        self.console = Console(log, echo)
        try:
            self._launch()
        except BaseException:
            self._keys.close()
            shutil.rmtree(self._folder, ignore_errors=True)
            raise
        atexit.register(self.kill)
        threading.Thread(target=self._attend, daemon=True).start()

    def _launch(self) -> None:
        """Starts a QEMU process. One that does not come up is ended again."""
        self._reset = False
        servers = {name: self._listen(name) for name in CHANNELS}
        self._process = subprocess.Popen(
            self._argv, stdin=subprocess.DEVNULL, stdout=self._errors, stderr=self._errors, start_new_session=True
        )
        try:
            self._commands, self._qmp = (self._accept(servers[name]) for name in CHANNELS)
            self._answers = b""
            self._qmp.settimeout(QMP_TIMEOUT_S)
            self._qmp_lines = self._qmp.makefile("rb")
            self.qmp("qmp_capabilities")
        except BaseException:
            self._end_process()
            raise

    def _end_process(self) -> None:
        if self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(30)

    def _attend(self) -> None:
        """Follows the console from boot to boot, until the machine is off or lost."""
        try:
            while True:
                process = self._process
                with self._printed.open("rb", buffering=0) as said:
                    self.console.follow(said, self._keys, lambda process=process: process.poll() is not None)
                with self._lock:
                    if self._ending or not self._restarts or not self._wants_boot():
                        break
                    self._launch()
        except (LabError, OSError) as error:
            self._errors.write(f"not started again: {error}\n".encode())
        finally:
            self._over.set()
            self.console.close()

    def _wants_boot(self) -> bool:
        """Whether QEMU ended because the guest asked for a reset: its last words on QMP tell."""
        with self._qmp_lock, contextlib.suppress(OSError):
            for line in self._qmp_lines:
                self._note(json.loads(line))
        return self._reset

    def _note(self, said: dict[str, Any]) -> None:
        if said.get("event") == "SHUTDOWN":
            self._reset = said["data"]["reason"] == "guest-reset"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    def _listen(self, name: str) -> socket.socket:
        path = self._folder / name
        path.unlink(missing_ok=True)
        server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        server.bind(str(path))
        server.listen(1)
        return server

    def _accept(self, server: socket.socket) -> socket.socket:
        with server:
            server.settimeout(0.5)
            deadline = time.monotonic() + CONNECT_TIMEOUT_S
            while time.monotonic() < deadline and self._process.poll() is None:
                with contextlib.suppress(TimeoutError):
                    stream, _ = server.accept()
                    stream.settimeout(None)
                    return stream
        raise LabError(f"QEMU did not start: {self._said()}")

    def _said(self) -> str:
        """What QEMU itself printed."""
        self._errors.seek(0)
        return self._errors.read().decode(errors="replace")

    def qmp(self, command: str, **arguments: Any) -> Any:
        """One QMP command; events that come between are passed over."""
        with self._qmp_lock:
            try:
                self._qmp.sendall(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
                while line := self._qmp_lines.readline():
                    answer = json.loads(line)
                    self._note(answer)
                    if "return" in answer:
                        return answer["return"]
                    if "error" in answer:
                        raise LabError(f"QMP {command}: {answer['error']}")
            except OSError as error:
                raise LabError(f"QMP {command}: {error}") from error
        raise LabError(f"QMP {command}: the machine ended")

    def _exchange(self, request: dict[str, Any], timeout: float) -> dict[str, Any]:
        try:
            return self._exchange_lines(request, timeout)
        except ConnectionError as error:
            # Only a QEMU that is gone closes this socket.
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(5)
            raise MachineLostError(f"QEMU ended with {self._process.poll()} ({error}): {self._said()}") from error

    def _exchange_lines(self, request: dict[str, Any], timeout: float) -> dict[str, Any]:
        self._commands.sendall(json.dumps(request).encode() + b"\n")
        deadline = time.monotonic() + timeout
        while True:
            while b"\n" in self._answers:
                line, _, self._answers = self._answers.partition(b"\n")
                answer: dict[str, Any] = json.loads(line)
                if answer.get("id") == request["id"]:
                    return answer
            self._commands.settimeout(max(0.01, deadline - time.monotonic()))
            try:
                data = self._commands.recv(65536)
            except TimeoutError:
                raise AssertionError(
                    f"in the guest: no answer within {timeout:.0f} s: {request}; console:\n{self.console.text[-2000:]}"
                ) from None
            if not data:
                raise MachineLostError(f"the machine ended: {request}; console:\n{self.console.text[-3000:]}")
            self._answers += data

    def wait_ready(self, timeout: float = 180, *, after: int = 0) -> None:
        """Waits until the guest takes commands; `after` is a mark on the console from before the boot that counts."""
        deadline = time.monotonic() + timeout
        # Nothing is sent to a port that nobody has opened yet.
        self.console.wait_for(r" login: ", timeout, after=after)
        while True:
            try:
                self._exchange({"id": os.urandom(4).hex(), "argv": ["/bin/true"], "timeout": 10}, 3)
                return
            except AssertionError:
                if time.monotonic() > deadline or self._over.is_set():
                    raise

    def run(self, argv: Sequence[str], *, timeout: float = 60, data: bytes | None = None) -> Done:
        """Runs a program in the guest and waits for it."""
        request: dict[str, Any] = {"id": os.urandom(4).hex(), "argv": list(argv), "timeout": timeout}
        if data is not None:
            request["input"] = base64.b64encode(data).decode()
        answer = self._exchange(request, timeout + 20)
        out, err = (base64.b64decode(answer[name]).decode(errors="replace") for name in ("out", "err"))
        return Done(argv=tuple(argv), rc=answer["rc"], out=out, err=err)

    def write(self, path: str, data: bytes) -> None:
        """Puts a file into the guest, in pieces of moderate size."""
        self.run(["/bin/sh", "-c", 'cat > "$1"', "sh", path], data=b"").ok()
        for start in range(0, len(data), 32768):
            piece = data[start : start + 32768]
            self.run(["/bin/sh", "-c", 'cat >> "$1"', "sh", path], data=piece).ok()

    def trigger(self, argv: Sequence[str]) -> None:
        """Starts a program that is not expected to answer, such as one that crashes the kernel."""
        self._commands.sendall(json.dumps({"id": "trigger", "argv": list(argv), "timeout": 60}).encode() + b"\n")

    def crash(self) -> None:
        """Panics the guest's kernel: sysrq-c (Documentation/admin-guide/sysrq.rst)."""
        self.trigger(["/bin/sh", "-c", "echo 1 > /proc/sys/kernel/sysrq; echo c > /proc/sysrq-trigger"])

    def plug_memory(self, name: str, size_mib: int) -> None:
        """Plugs in a DIMM."""
        self.qmp("object-add", **{"qom-type": "memory-backend-ram", "id": f"{name}-ram", "size": size_mib << 20})
        self.qmp("device_add", driver="pc-dimm", id=name, memdev=f"{name}-ram")

    def processor_sec(self) -> float:
        """The processor time that QEMU has taken since the machine was switched on, in seconds; while it is on."""
        # timeout(1) has one child (proc(5), children and stat: utime and stime, in clock ticks, are fields 14 and 15).
        pid = self._process.pid
        (qemu,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        fields = Path(f"/proc/{qemu}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def alive(self) -> bool:
        """False once the machine is off."""
        return not self._over.is_set()

    def wait_ended(self, timeout: float) -> None:
        """Waits until the machine has switched itself off."""
        if not self._over.wait(timeout):
            raise AssertionError(f"still on after {timeout:.0f} s; console:\n{self.console.text[-3000:]}")

    def power_off(self, timeout: float = 90) -> None:
        """Shuts the guest down in an orderly way, so that its disk is whole."""
        self.trigger(["systemctl", "poweroff", "--no-block"])
        self.wait_ended(timeout)

    def kill(self) -> None:
        """Ends the machine at once. Harmless when it has ended."""
        self._ending = True
        with self._lock:
            self._end_process()
        self._over.wait(30)
        self._keys.close()
        shutil.rmtree(self._folder, ignore_errors=True)
        atexit.unregister(self.kill)


def _memory(memory_mib: int, slots: int) -> str:
    """What -m is told; with slots for DIMMs that are plugged in later, up to four times as much in all."""
    return f"{memory_mib}M,slots={slots},maxmem={4 * memory_mib}M" if slots else f"{memory_mib}M"


def overlay(base: Path, path: Path) -> Path:
    """A qcow2 disk at `path` that starts as `base` (raw) and leaves it as it is."""
    run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", str(base), "-F", "raw", str(path)], timeout=60)
    return path


def accelerator(kernel: Path) -> str:
    """Which accelerator works here: "kvm" when a short boot under it ends well, else "tcg". Tried once per host boot.

    /dev/kvm can exist and hang every guest, hence the boot: without a root filesystem the kernel panics
    within seconds, and that panic is the proof. KDUMPD_ACCEL overrides.
    """
    if forced := os.environ.get("KDUMPD_ACCEL"):
        return forced
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return "tcg"
    noted = CACHE / "vm" / f"accel-{_BOOT_ID.read_text().strip()}"
    noted.parent.mkdir(parents=True, exist_ok=True)
    # Machines are started side by side, by threads as well as by processes: one of them tries, the others wait.
    with noted.open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        answer = file.read()
        if not answer:
            answer = "kvm" if _kvm_boots(kernel) else "tcg"
            file.write(answer)
        return answer


def _kvm_boots(kernel: Path) -> bool:
    with tempfile.TemporaryDirectory() as scratch:
        try:
            with Machine(
                kernel=kernel,
                disks=[],
                append="console=ttyS0 panic=0",
                log=Path(scratch) / "log",
                memory_mib=512,
                accel="kvm",
            ) as machine:
                machine.console.wait_for("Kernel panic - not syncing: VFS", PROBE_S)
                return True
        except (AssertionError, LabError):
            return False


def _accel_words(accel: str) -> list[str]:
    return ["-accel", "kvm"] if accel == "kvm" else ["-accel", "tcg,thread=multi"]
