# SPDX-License-Identifier: GPL-2.0-or-later
"""Another program that writes the dump (kdump.conf(5): core_collector external).

It reads the memory itself and gives the dump to its standard output, so that it goes to any target, under the same
deadlines. makedumpfile(8) is told to flatten (-F), and each record is put into its place: what lies on the target is
the dump itself. What another program gives is written as it comes.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import select
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from kdumpd.collector.dump import Outcome
from kdumpd.collector.progress import Progress, size_text
from kdumpd.dumpfile.codecs import Buffer
from kdumpd.dumpfile.diskdump import SIGNATURE
from kdumpd.dumpfile.manifest import Region
from kdumpd.dumpfile.sink import Sink
from kdumpd.dumpfile.stored import Stored
from kdumpd.dumpfile.unflatten import unflatten
from kdumpd.errors import DumpFormatError, TargetError, os_reason

_MAKEDUMPFILE = "makedumpfile"
_PIECE = 1 << 20
_POLL_SEC = 1.0
_PATIENCE_SEC = 20.0
_PR_SET_PDEATHSIG = 1
# Said by us, or of no use where no file is named.
_OURS = frozenset({"-F", "-f"})


def command(words: Sequence[str], vmcore: Path) -> list[str]:
    """The program with its arguments; the last one of any but makedumpfile is a name of its standard output."""
    if Path(words[0]).name == _MAKEDUMPFILE:
        return [words[0], "-F", *(word for word in words[1:] if word not in _OURS), str(vmcore)]
    return [*words, str(vmcore), "/proc/self/fd/1"]


def run_external(words: Sequence[str], vmcore: Path, sink: Sink, outcome: Outcome, progress: Progress) -> None:
    """Has the program write all of it to `sink`, and waits until that is on stable storage.

    Raises TargetError when the program fails, gives nothing, or breaks off.
    """
    argv = command(words, vmcore)
    outcome.notes.append(f"the dump is by another program: {' '.join(argv)}")
    progress.phase(f"running {words[0]}")
    counting = _Counting(sink, outcome, progress)
    with outcome.timed("external"), _running(argv) as process:
        output = _Output(process, progress)
        whole = True
        if Path(words[0]).name == _MAKEDUMPFILE:
            try:
                _, whole = unflatten(output.read, f"what {words[0]} writes", counting)
            except DumpFormatError as error:
                # One that ends at once says why on the console, and in its status.
                output.expect_success()
                raise TargetError(f"{words[0]} gave no dump: {error.sentence}") from error
        else:
            while data := output.read(_PIECE):
                counting.write_at(outcome.size_bytes, data)
            sink.sync()
        output.expect_success()
    if not whole or not outcome.size_bytes:
        raise TargetError(f"{words[0]} ended before its dump was whole")


def known_format(stored: Stored) -> bool:
    """Whether it is a dump that can be checked."""
    return stored.read_at(0, len(SIGNATURE)).startswith((SIGNATURE, b"\x7fELF"))


def checksums(stored: Stored, progress: Progress) -> tuple[Region, ...]:
    """The checksum of all of the file, as one region."""
    digest = hashlib.sha256()
    for offset in range(0, stored.size, _PIECE):
        digest.update(stored.read_at(offset, _PIECE))
        progress.alive()
    return (Region(offset=0, size_bytes=stored.size, sha256=digest.hexdigest()),)


@contextlib.contextmanager
def _running(argv: Sequence[str]) -> Iterator[subprocess.Popen[bytes]]:
    """The program, which goes when this process does, however that ends. Raises TargetError."""
    libc = ctypes.CDLL(None)

    def die_with_the_collector() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

    try:
        process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, umask=0o077, preexec_fn=die_with_the_collector
        )
    except OSError as error:
        hint = "is it in the image? On the running system: kdumpctl rebuild"
        raise TargetError(f"{argv[0]} cannot be run: {os_reason(error)}", hint=hint) from error
    try:
        yield process
    finally:
        process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_PATIENCE_SEC)  # one that hangs in the kernel stays
        if process.stdout is not None:
            process.stdout.close()


class _Output:
    """What the program writes. While it writes nothing, its work is a sign of life, and only that."""

    def __init__(self, process: subprocess.Popen[bytes], progress: Progress) -> None:
        assert process.stdout is not None
        self._process = process
        self._progress = progress
        self._fd = process.stdout.fileno()
        self._worked = 0
        self._poll = select.poll()
        self._poll.register(self._fd, select.POLLIN)

    def read(self, size: int) -> bytes:
        """Up to `size` bytes; nothing at the end."""
        while not self._poll.poll(_POLL_SEC * 1000):
            self._look()
        data = os.read(self._fd, min(size, _PIECE))
        self._progress.alive()
        return data

    def expect_success(self) -> None:
        """Waits for the program's end. Raises TargetError when it failed."""
        name = self._process.args[0] if isinstance(self._process.args, list) else ""
        end = time.monotonic() + _PATIENCE_SEC
        while (status := self._process.poll()) is None and time.monotonic() < end:
            self._look()
            time.sleep(0.1)
        if status is None:
            raise TargetError(f"{name} closed its output and did not end")
        if status < 0:
            raise TargetError(f"{name} was killed by signal {-status}, perhaps for want of memory")
        if status > 0:
            raise TargetError(f"{name} ended with status {status}", hint="what it said is on the console")

    def _look(self) -> None:
        worked = _processor_time(self._process.pid)
        if worked != self._worked:
            self._worked = worked
            self._progress.alive()


def _processor_time(pid: int) -> int:
    """What a process and those that it started have worked, in ticks (proc_pid_stat(5)); 0 when it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(") ")[2].split()
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
        return sum(map(int, fields[11:15])) + sum(_processor_time(int(child)) for child in children)
    except (OSError, ValueError, IndexError):
        return 0


class _Counting:
    """The sink, with the size of the file told to the outcome and to whoever watches."""

    def __init__(self, sink: Sink, outcome: Outcome, progress: Progress) -> None:
        self.name = sink.name
        self.rewritable = sink.rewritable
        self._sink = sink
        self._outcome = outcome
        self._progress = progress
        self._told = time.monotonic()
        self.read_at: Callable[[int, int], bytes] = sink.read_at
        self.sync: Callable[[], None] = sink.sync
        self.reserve = sink.reserve
        self.free_bytes = sink.free_bytes
        self.scratch = sink.scratch

    def write_at(self, offset: int, data: Buffer) -> None:
        """All of `data` at `offset`, or an error."""
        self._sink.write_at(offset, data)
        self._outcome.size_bytes = max(self._outcome.size_bytes, offset + len(data))
        if time.monotonic() - self._told >= _POLL_SEC:
            self._told = time.monotonic()
            self._progress.say(f"{size_text(self._outcome.size_bytes)} so far")

    def write_parts(self, offset: int, parts: Sequence[Buffer]) -> None:
        """All of `parts`, one behind the other."""
        for part in parts:
            self.write_at(offset, part)
            offset += len(part)
