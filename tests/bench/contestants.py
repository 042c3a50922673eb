# SPDX-License-Identifier: GPL-2.0-or-later
"""Who runs in the benchmark, with what words, and how a run is measured."""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from lab import tools

TOP = Path(__file__).resolve().parents[2]
PYTHON = "/usr/bin/python3"
# The same libzstd for both, as another version is a tenth faster or slower; the other one is for its threads.
_OF_THIS_SYSTEM = ("libzstd.so.1", "libgcc_s.so.1")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What is asked of everybody: `codec` "zstd" or "zlib", `level` of -d, `cpus` to run on."""

    core: Path
    codec: str
    level: int
    cpus: int

    @property
    def option(self) -> str:
        return {"zstd": "-z", "zlib": "-c"}[self.codec]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One run: seconds of the clock and of cpus, and the most memory in bytes, 0 where it is not told."""

    wall: float
    cpu: float
    peak: int


@dataclasses.dataclass(slots=True)
class Contestant:
    """A program, as the words to start it with for an output file."""

    name: str
    words: Callable[[Path], list[str]]
    runs: list[Run] = dataclasses.field(default_factory=list)

    def run(self, out: Path, cpus: int) -> None:
        """Runs once, on the first `cpus` of the machine."""
        out.unlink(missing_ok=True)
        argv = ["taskset", "-c", ",".join(map(str, range(cpus))), *self.words(out)]
        began = time.monotonic()
        child = subprocess.Popen(
            argv, cwd=TOP, env=environment(out.parent), stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        assert child.stdout is not None
        said = child.stdout.read().decode(errors="replace")
        _, status, usage = os.wait4(child.pid, 0)
        wall = time.monotonic() - began
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            raise SystemExit(f"{' '.join(argv)}: exit {child.returncode}\n{said}")
        # ru_maxrss would not do: it begins with what the parent of a process needs.
        peak = json.loads(said)["peak_rss_bytes"] if said.startswith("{") else 0
        self.runs.append(Run(wall=wall, cpu=usage.ru_utime + usage.ru_stime, peak=peak))

    def median(self, what: str) -> float:
        """Of all its runs."""
        return statistics.median(getattr(run, what) for run in self.runs)


def environment(scratch: Path) -> dict[str, str]:
    """Modules compiled beforehand, as those of the package and of the capture image are."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return kept | {"PYTHONPYCACHEPREFIX": str(scratch / "compiled")}


def makedumpfile(case: Case, scratch: Path, threads: int) -> Contestant:
    """makedumpfile of the newest Debian, with this machine's libzstd."""
    loader, option, libraries, program = tools.program("makedumpfile")
    here = scratch / "lib"
    here.mkdir(exist_ok=True)
    for name in _OF_THIS_SYSTEM:
        if not (here / name).exists():
            (here / name).symlink_to(Path(f"/lib/{os.uname().machine}-linux-gnu") / name)
    words = [loader, option, f"{here}:{libraries}", program, "--message-level", "0", case.option, "-d", str(case.level)]
    if threads > 1:
        words += ["--num-threads", str(threads)]
    name = "makedumpfile" if threads <= 1 else f"makedumpfile --num-threads {threads}"
    return Contestant(name, lambda out: [*words, str(case.core), str(out)])


def kdumpd(case: Case, name: str, *more: str) -> Contestant:
    """kdumpd-collect with as many threads as cpus; without checksums and self-check unless `more` asks for them."""
    words = [
        PYTHON,
        "-m",
        "kdumpd.collector",
        case.option,
        "-d",
        str(case.level),
        "--num-threads",
        str(case.cpus),
        *more,
    ]
    return Contestant(name, lambda out: [*words, "--message-level", "0", "--json", str(case.core), str(out)])


def bare_loop(case: Case, scratch: Path, offsets: Path) -> Contestant:
    """loop.c over the pages in `offsets`, compiled here."""
    program = scratch / "loop"
    if not program.exists():
        source = Path(__file__).parent / "loop.c"
        subprocess.run(["cc", "-O2", "-Wall", "-o", str(program), str(source), "-lzstd"], check=True)
    return Contestant("bare libzstd loop", lambda out: [str(program), str(case.core), str(offsets), str(out)])


def alternate(contestants: Sequence[Contestant], out: Path, cpus: int, runs: int, until: float) -> int:
    """Everybody once, up to `runs` times over, beginning with another one each time. Stops when another round would
    end after `until`, a time of the monotonic clock; how many rounds there were."""
    for number in range(runs):
        began = time.monotonic()
        shift = number % len(contestants)
        for contestant in (*contestants[shift:], *contestants[:shift]):
            contestant.run(out, cpus)
        now = time.monotonic()
        if now + (now - began) > until:
            break
    out.unlink(missing_ok=True)
    return number + 1
