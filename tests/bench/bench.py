# SPDX-License-Identifier: GPL-2.0-or-later
"""kdumpd-collect beside makedumpfile: the same memory, codec and level, in turns. See --help."""

from __future__ import annotations

import argparse
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
from contestants import PYTHON, TOP, Case, Contestant, alternate, bare_loop, kdumpd, makedumpfile
from lab import pages, tools

from kdumpd.dumpfile.reader import DiskdumpReader
from kdumpd.vmcore.elfcore import ElfCore

PAGE = TOP / "docs" / "PERFORMANCE.md"
_BEGIN, _END = "<!-- measured: begin -->\n", "<!-- measured: end -->\n"
_STEP = re.compile(r"STEP \[Excluding unnecessary pages\] *: *([0-9.]+) seconds")


class Bench:
    """One input, measured in every way; `lines` are the lines of the tables."""

    def __init__(self, name: str, core: Path, scratch: Path, runs: int) -> None:
        self.name, self.core, self.scratch, self.runs = name, core, scratch, runs
        self.out = scratch / "out"
        self.lines: list[str] = []

    def side_by_side(self, case: Case) -> None:
        """Level 1 of the codec for everybody; kdumpd's own choice of level beside it."""
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
        others.append(kdumpd(case, "kdumpd with checksums", "--compression-level", "1", "--no-verify"))
        others.append(kdumpd(case, "kdumpd with self-check", "--compression-level", "1", "--no-checksums"))
        everybody = [mine, *theirs, *others]
        alternate(everybody, self.out, case.cpus, self.runs)
        best = min(theirs, key=lambda each: each.median("wall"))
        same = self._same_pages(mine, best, case)
        for each in everybody:
            ratios = [f"{each.median(what) / best.median(what):.2f}" for what in ("wall", "cpu")]
            peak = f"{each.median('peak') / (1 << 20):.0f}" if each.median("peak") else ""
            self.lines.append(
                f"| {self.name} | {case.codec} | {case.level} | {case.cpus} | {each.name} | "
                f"{each.median('wall'):.2f} | {each.median('cpu'):.2f} | {ratios[0]} | {ratios[1]} | {peak} | "
                f"{same if each is mine else ''} |"
            )
            say(self.lines[-1])

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

    def scan(self, times: int = 1) -> None:
        """The classification pass; makedumpfile's is the sum of both of its passes."""
        mine, theirs = [], []
        loader, *rest = tools.program("makedumpfile")
        for _ in range(self.runs):
            argv = ["taskset", "-c", "0", PYTHON, "tests/bench/scan.py", str(self.core), str(times)]
            done = subprocess.run(argv, cwd=TOP, capture_output=True, text=True, check=True)
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
        self.lines.append(f"| {name} | {statistics.median(mine):.3f} | {other} |")
        say(self.lines[-1])

    def first_byte(self) -> None:
        """From the start of the interpreter to the first byte of a dump."""
        found = []
        for _ in range(self.runs):
            self.out.unlink(missing_ok=True)
            words = ["-z", "-d", "31", "--message-level", "0", str(self.core), str(self.out)]
            argv = [PYTHON, "tests/bench/first_byte.py", str(time.monotonic()), *words]
            done = subprocess.run(argv, cwd=TOP, capture_output=True, text=True, check=True)
            found.append(float(done.stdout.splitlines()[0]))
        self.out.unlink(missing_ok=True)
        self.lines.append(f"| {self.name} | {statistics.median(found):.2f} |")
        say(self.lines[-1])


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def tables(benches: list[Bench], arguments: argparse.Namespace) -> str:
    """All that was asked for, as Markdown."""
    words = " ".join(sys.argv[1:])
    command = f"tests/bench/run {words}".rstrip()
    said = [
        (
            f"Measured by `{command}` on {cpu_name()}, {os.cpu_count()} cpus, Linux {platform.release()}; "
            f"medians of {arguments.runs} runs in turns, output to {arguments.out}.\n"
        )
    ]
    heads = {
        "dump": "| memory | codec | -d | cpus | program | wall s | cpu s | wall ratio | cpu ratio | MiB | pages |\n"
        + "|---" * 11
        + "|",
        "scan": "| memory | classification s | makedumpfile's two passes s |\n|---|---|---|",
        "start": "| memory | start to first byte s |\n|---|---|",
    }
    for what in arguments.what:
        lines: list[str] = []
        for bench in benches:
            before = len(bench.lines)
            if what == "dump":
                for codec in arguments.codec:
                    for level in arguments.level:
                        for cpus in arguments.cpus:
                            bench.side_by_side(Case(core=bench.core, codec=codec, level=level, cpus=cpus))
            elif what == "scan":
                bench.scan()
                if arguments.times:
                    bench.scan(arguments.times)
            else:
                bench.first_byte()
            lines += bench.lines[before:]
        command = f"tests/bench/run --what {what}"
        said.append("\n".join([f"`{command}`:\n", heads[what], *lines, ""]))
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
        "on a guest with 4 GiB and one with 64 GiB, and the tables in docs/PERFORMANCE.md are written anew.",
    )
    parser.add_argument("--what", nargs="+", choices=("dump", "scan", "start"), default=["dump", "scan", "start"])
    parser.add_argument("--memory", nargs="+", type=int, default=[4096, 65536], help="MiB of the guests")
    parser.add_argument("--input", type=Path, help="a vmcore to take instead")
    parser.add_argument("--codec", nargs="+", choices=("zstd", "zlib"), default=["zstd", "zlib"])
    parser.add_argument("--level", nargs="+", type=int, default=[31, 1], help="of -d")
    parser.add_argument("--cpus", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--runs", type=int, default=5)
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
        page = PAGE.read_text()
        head, rest = page.split(_BEGIN)
        PAGE.write_text(head + _BEGIN + text + rest[rest.index(_END) :])


if __name__ == "__main__":
    main()
