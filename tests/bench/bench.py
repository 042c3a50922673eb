# SPDX-License-Identifier: GPL-2.0-or-later
"""kdumpd-collect beside makedumpfile: the same memory, codec and level, in turns. See --help."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import inputs
import numpy as np
import page
from contestants import PYTHON, TOP, Case, Contestant, alternate, bare_loop, environment, kdumpd, makedumpfile
from lab import pages, tools

from kdumpd.dumpfile.reader import DiskdumpReader
from kdumpd.vmcore.elfcore import ElfCore

_SMALL = 8 << 30  # bytes of a core
_QUIET = 1.5
_MEASURING = 0.7
_HEADS = {
    "dump": "| memory | codec | -d | cpus | program | runs | wall s | cpu s | wall ratio | cpu ratio | MiB | pages |\n"
    + "|---" * 12
    + "|",
    "scan": "| memory | classification s | makedumpfile's two passes s |\n|---|---|---|",
    "start": "| memory | start to first byte s |\n|---|---|",
}
_STEP = re.compile(r"STEP \[Excluding unnecessary pages\] *: *([0-9.]+) seconds")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One case for an input; `checks` measures what checksums and the self-check cost, too."""

    bench: Bench
    case: Case
    checks: bool


class Bench:
    """One input, measured in every way; `lines` are the lines of the tables."""

    def __init__(self, name: str, core: Path, scratch: Path, runs: int) -> None:
        self.name, self.core, self.scratch, self.runs = name, core, scratch, runs
        self.out = scratch / "out"

    def side_by_side(self, case: Case, *, checks: bool, until: float) -> list[str]:
        """Level 1 of the codec for everybody; kdumpd's own choice of level beside it. The lines of the table."""
        level = ("--compression-level", "1", "--no-checksums", "--no-verify")
        mine = kdumpd(case, "kdumpd", *level)
        theirs = [makedumpfile(case, self.scratch, 1)]
        if case.cpus > 1:
            theirs.append(makedumpfile(case, self.scratch, case.cpus))
        others: list[Contestant] = []
        if case.codec == "zstd":
            others.append(kdumpd(case, "kdumpd, level auto", "--no-checksums", "--no-verify"))
            if case.cpus == 1:
                others.append(bare_loop(case, self.scratch, self._offsets(case)))
        if checks:
            others.append(kdumpd(case, "kdumpd with checksums", "--compression-level", "1", "--no-verify"))
            others.append(kdumpd(case, "kdumpd with self-check", "--compression-level", "1", "--no-checksums"))
        everybody = [mine, *theirs, *others]
        rounds = alternate(everybody, self.out, case.cpus, self.runs, until)
        best = min(theirs, key=lambda each: each.median("wall"))
        same = self._same_pages(mine, best, case)
        lines = []
        for each in everybody:
            ratios = [f"{each.median(what) / best.median(what):.2f}" for what in ("wall", "cpu")]
            peak = f"{each.median('peak') / (1 << 20):.0f}" if each.median("peak") else ""
            lines.append(
                f"| {self.name} | {case.codec} | {case.level} | {case.cpus} | {each.name} | {rounds} | "
                f"{each.median('wall'):.2f} | {each.median('cpu'):.2f} | {ratios[0]} | {ratios[1]} | {peak} | "
                f"{same if each is mine else ''} |"
            )
            say(lines[-1])
        return lines

    def _offsets(self, case: Case) -> Path:
        """The places in the core of all pages that are saved with bytes."""
        wanted = self.scratch / f"offsets-{self.name.replace(' ', '')}-{case.level}"
        kdumpd(case, "", "--no-checksums", "--no-verify").run(self.out, case.cpus)
        with DiskdumpReader(self.out) as dump, ElfCore(self.core) as core, wanted.open("wb") as file:
            pfns = dump.pfns()
            zero_at = min(int(table["offset"].min()) for _, table in dump.descriptors())
            for first, table in dump.descriptors():
                here = pfns[first : first + len(table)][table["offset"] != zero_at]
                file.write(core._offsets(here).astype("<u8").tobytes())
        return wanted

    def _same_pages(self, mine: Contestant, best: Contestant, case: Case) -> str:
        theirs = self.scratch / "theirs"
        mine.run(self.out, case.cpus)
        best.run(theirs, case.cpus)
        mine.runs.pop()
        best.runs.pop()
        with pages.Dump(self.out) as ours, pages.Dump(theirs) as other:
            equal = np.array_equal(ours.pfns, other.pfns)
            # Each byte of every page is compared by tests/dump; here a spread of them.
            for index in range(0, len(ours.pfns), max(1, len(ours.pfns) // 2000)) if equal else ():
                equal = equal and ours.page(index) == other.page(index)
            count = len(ours.pfns)
        theirs.unlink()
        return f"{count} the same" if equal else "DIFFERENT"

    def scan(self, times: int = 1) -> str:
        """The classification pass; makedumpfile's is the sum of both of its passes. The line of the table."""
        mine, theirs = [], []
        loader, *rest = tools.program("makedumpfile")
        for _ in range(self.runs):
            argv = ["taskset", "-c", "0", PYTHON, "tests/bench/scan.py", str(self.core), str(times)]
            done = subprocess.run(
                argv, cwd=TOP, env=environment(self.scratch), capture_output=True, text=True, check=True
            )
            mine.append(float(done.stdout.split()[0]))
            if times == 1:
                self.out.unlink(missing_ok=True)
                argv = ["taskset", "-c", "0", loader, *rest, "-z", "-d", "31", "--message-level", "31"]
                done = subprocess.run(
                    [*argv, str(self.core), str(self.out)], capture_output=True, text=True, check=True
                )
                theirs.append(sum(map(float, _STEP.findall(done.stdout + done.stderr))))
        self.out.unlink(missing_ok=True)
        other = f"{statistics.median(theirs):.3f}" if theirs else "-"
        name = self.name if times == 1 else f"{times} times the map of {self.name}"
        line = f"| {name} | {statistics.median(mine):.3f} | {other} |"
        say(line)
        return line

    def first_byte(self) -> str:
        """From the start of the interpreter to the first byte of a dump. The line of the table."""
        found = []
        for _ in range(self.runs):
            self.out.unlink(missing_ok=True)
            words = ["-z", "-d", "31", "--message-level", "0", str(self.core), str(self.out)]
            argv = [PYTHON, "tests/bench/first_byte.py", str(time.monotonic()), *words]
            done = subprocess.run(
                argv, cwd=TOP, env=environment(self.scratch), capture_output=True, text=True, check=True
            )
            found.append(float(done.stdout.splitlines()[0]))
        self.out.unlink(missing_ok=True)
        line = f"| {self.name} | {statistics.median(found):.2f} |"
        say(line)
        return line


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def questions(benches: list[Bench], arguments: argparse.Namespace) -> list[Question]:
    """What is to be compared, the most telling first. Of a large machine only -d 31: at -d 1 most of a dump of it is
    pages that were never used."""
    found = []
    for level, codec, cpus in itertools.product(arguments.level, arguments.codec, arguments.cpus):
        for bench in benches:
            if level == 31 or bench.core.stat().st_size <= _SMALL:
                case = Case(core=bench.core, codec=codec, level=level, cpus=cpus)
                checks = (level, codec) == (31, "zstd") and bench is benches[0]
                found.append(Question(bench=bench, case=case, checks=checks))
    return found


def tables(benches: list[Bench], arguments: argparse.Namespace) -> str:
    """All that was asked for, as Markdown."""
    began = time.monotonic()
    load = os.getloadavg()[0]
    if load > _QUIET:
        say(f"The load is {load:.1f}: what else runs here will be in the figures.")
    words = " ".join(sys.argv[1:])
    lines: dict[str, list[str]] = {"dump": [], "scan": [], "start": []}
    # Compiles everything once, which does not count.
    kdumpd(Case(core=benches[0].core, codec="zstd", level=31, cpus=1), "").run(benches[0].out, 1)
    for bench in benches:
        if "start" in arguments.what:
            lines["start"].append(bench.first_byte())
        if "scan" in arguments.what:
            lines["scan"].append(bench.scan())
            if arguments.times:
                lines["scan"].append(bench.scan(arguments.times))
    if "dump" in arguments.what:
        asked = questions(benches, arguments)
        for number, each in enumerate(asked):
            now = time.monotonic()
            # An even share of what is left; of that a part is for comparing the pages.
            share = (began + arguments.minutes * 60 - now) / (len(asked) - number)
            lines["dump"] += each.bench.side_by_side(each.case, checks=each.checks, until=now + share * _MEASURING)
        lines["dump"].sort(key=lambda line: [bench.name for bench in benches].index(line.split("|")[1].strip()))
    said = [
        (
            f"Measured by `{f'tests/bench/run {words}'.rstrip()}` in {(time.monotonic() - began) / 60:.0f} minutes on "
            f"{cpu_name()}, {os.cpu_count()} cpus, Linux {platform.release().partition('-')[0]}, load before "
            f"{load:.1f}; medians of up to {arguments.runs} runs in turns, output to {arguments.out}.\n"
        )
    ]
    for what, head in _HEADS.items():
        if lines[what]:
            said.append("\n".join([f"`tests/bench/run --what {what}`:\n", head, *lines[what], ""]))
    return "\n".join(said)


def cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="tests/bench/run",
        description="Measures kdumpd-collect beside makedumpfile and a bare libzstd loop. Without options: everything, "
        "on a guest with 4 GiB and one with 64 GiB, in 12 minutes, and the tables in docs/PERFORMANCE.md are written "
        "anew. Guests that are not in ~/.cache/kdumpd/bench are made first, which takes longer.",
    )
    parser.add_argument("--what", nargs="+", choices=("dump", "scan", "start"), default=["dump", "scan", "start"])
    parser.add_argument("--memory", nargs="+", type=int, default=[4096, 65536], help="MiB of the guests")
    parser.add_argument("--input", type=Path, help="a vmcore to take instead")
    parser.add_argument("--codec", nargs="+", choices=("zstd", "zlib"), default=["zstd", "zlib"])
    parser.add_argument("--level", nargs="+", type=int, default=[31, 1], help="of -d")
    parser.add_argument("--cpus", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--runs", type=int, default=5, help="rounds of each case, as many as the time allows")
    parser.add_argument("--minutes", type=float, default=11, help="when this is over, each case left is run once")
    parser.add_argument("--times", type=int, default=16, help="repeat the memory map so often for one more scan")
    parser.add_argument("--out", type=Path, default=Path("/dev/shm"), help="folder for the dumps")
    parser.add_argument("--print", action="store_true", help="leave docs/PERFORMANCE.md as it is")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kdumpd-bench-", dir=arguments.out) as folder:
        scratch = Path(folder)
        if arguments.input is not None:
            benches = [Bench(arguments.input.name, arguments.input.resolve(), scratch, arguments.runs)]
        else:
            benches = [
                Bench(f"{size // 1024} GiB", inputs.guest_vmcore(size), scratch, arguments.runs)
                for size in arguments.memory
            ]
        text = tables(benches, arguments)
    if not arguments.print:
        page.write("measured", text)


if __name__ == "__main__":
    main()
