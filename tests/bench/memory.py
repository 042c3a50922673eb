# SPDX-License-Identifier: GPL-2.0-or-later
"""Crashes guests again and again with as little memory reserved as is promised, and tells how many were captured.

Each run is a guest of its own (tests/vm/lab/tiny.py) with Debian 12's kernel. The first image of a case is built; the
next ones take most of it from there. What counts is what the manifest beside the dump says, with the checksums of all
files, not what the guest printed. The figures are those of the manifest: the collector's peak, the least memory that
was available while it ran, and its seconds; "to the end" is from the crash until the machine is off.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import page
from lab import proof, tiny
from lab.aptroot import LabError
from lab.sshd import HOST, WAY, Sshd, running

_HEAD = (
    "| target | memory | crashkernel | captured | collector's peak MiB | least available MiB | collector s "
    "| to the end s |"
)
_MIB = 1 << 20
_CARD = ("-netdev", "user,id=net0", "-device", "virtio-net-pci,netdev=net0,id=card0")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What is tried: a name for the command line, the machine's memory in MiB, and what is reserved."""

    name: str
    target: str
    memory_mib: int
    crashkernel: str


CASES = (
    Case(name="local", target="ext4", memory_mib=4096, crashkernel="128M"),
    Case(name="ssh", target="SSH", memory_mib=4096, crashkernel="192M"),
    Case(name="least", target="ext4", memory_mib=2048, crashkernel="96M"),
)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One crash: the manifest that it left, if any; why it does not count, if it does not; seconds to the end."""

    manifest: dict[str, object] | None
    trouble: str | None
    ended_sec: float | None


def main() -> int:
    """Runs what is asked for; 0 if all was captured."""
    parser = argparse.ArgumentParser(prog="tests/bench/memory", description=__doc__)
    parser.add_argument("--runs", type=int, default=10, metavar="N", help="of each case (10)")
    parser.add_argument("--case", choices=[case.name for case in CASES], action="append", help="this one alone")
    parser.add_argument("--crashkernel", metavar="SIZE", help="instead of what the case has; nothing is written then")
    parser.add_argument(
        "--results", type=Path, metavar="FILE", help="append each run there; the table counts all in it"
    )
    parser.add_argument("--write", action="store_true", help=f"put the table into {page.PAGE.name}")
    options = parser.parse_args()
    lines = []
    good = True
    for case in CASES:
        if options.case and case.name not in options.case:
            continue
        if options.crashkernel:
            case = dataclasses.replace(case, crashkernel=options.crashkernel)
        with tempfile.TemporaryDirectory(prefix="kdumpd-memory-") as folder:
            runs = [*_earlier(case, options.results), *_runs(case, options.runs, Path(folder), options.results)]
        lines.extend([_line(case, runs)] if runs else [])
        good = good and all(run.trouble is None for run in runs)
    table = "\n".join([_head(), _HEAD, "|---" * 8 + "|", *lines])
    print(table)
    if options.write and not options.crashkernel:
        page.write("memory", f"{table}\n")
    return 0 if good else 1


def _earlier(case: Case, results: Path | None) -> Iterator[Run]:
    """The runs of a case that are in the file, in JSON, one a line."""
    for line in results.read_text().splitlines() if results is not None and results.exists() else ():
        raw = json.loads(line)
        if raw.pop("case") == dataclasses.asdict(case):
            yield Run(**raw)


def _runs(case: Case, count: int, folder: Path, results: Path | None) -> Iterator[Run]:
    for number in range(count):
        run = (_ssh if case.target == "SSH" else _local)(case, folder, f"{case.name}{number}")
        facts = run.manifest or {}
        said = run.trouble or f"captured, {_mib(facts.get('lowest_available_bytes'))} MiB were left"
        print(f"{case.name} {number + 1}/{count}: {said}", file=sys.stderr, flush=True)
        if results is not None:
            with results.open("a") as file:
                print(json.dumps({"case": dataclasses.asdict(case), **dataclasses.asdict(run)}), file=file)
        yield run


def _local(case: Case, folder: Path, name: str) -> Run:
    disk = folder / f"{name}.raw"
    uuid = tiny.ext4(disk)
    config = f"ext4 UUID={uuid}\npath /crash\ndeadline_stall 60\ndeadline_total 180\n"
    try:
        return _judged(
            lambda: tiny.crash(
                config,
                folder,
                disks=[tiny.Disk(path=disk)],
                crashkernel=case.crashkernel,
                memory_mib=case.memory_mib,
                name=name,
            ),
            lambda: tiny.take_ext4(disk, "/crash", folder / name),
        )
    finally:
        disk.unlink()


def _ssh(case: Case, folder: Path, name: str) -> Run:
    with running(folder / "sshd") as server:
        return _judged(
            lambda: tiny.crash(
                f"ssh root@{HOST}:{server.port}\npath {folder}/{name}\ndeadline_stall 60\ndeadline_total 180\n",
                folder,
                setup=WAY,
                modules=["virtio_net"],
                words=_CARD,
                prepare=_trust(server),
                crashkernel=case.crashkernel,
                memory_mib=case.memory_mib,
                name=name,
            ),
            lambda: tiny.only_crash(folder / name),
        )


def _trust(server: Sshd) -> Callable[[Path], None]:
    """Puts the key and the pinned host key where `kdumpctl propagate` would."""

    def prepare(root: Path) -> None:
        folder = root / "etc/kdumpd/ssh"
        folder.mkdir(parents=True)
        shutil.copy(server.key, folder / "id_ed25519")
        shutil.copy(server.pin(server.port, name=HOST), folder / "known_hosts")

    return prepare


def _judged(crash: Callable[[], tiny.Outcome], take: Callable[[], Path]) -> Run:
    ended = None
    manifest = None
    try:
        ended = crash().captured_sec
        folder = take()
        manifest = json.loads((folder / "manifest.json").read_text())
        proof.complete(folder)
        proof.verified(folder)
    except (AssertionError, LabError, OSError, TimeoutError) as error:
        return Run(manifest=manifest, trouble=f"{error}".splitlines()[0], ended_sec=ended)
    return Run(manifest=manifest, trouble=None, ended_sec=ended)


def _head() -> str:
    day = time.strftime("%Y-%m-%d")
    return (
        f"{day}, guests of QEMU on {platform.machine()}, one emulated processor each, the machine busy with other "
        "work: the seconds are upper bounds. Median, and the worst in brackets.\n"
    )


def _line(case: Case, runs: Sequence[Run]) -> str:
    good = [run for run in runs if run.trouble is None]
    manifests = [run.manifest for run in good if run.manifest is not None]
    peak = [_number(each.get("peak_rss_bytes")) / _MIB for each in manifests]
    least = [_number(each.get("lowest_available_bytes")) / _MIB for each in manifests]
    took = [(_number(each["finished_usec"]) - _number(each["started_usec"])) / 1e6 for each in manifests]
    ended = [run.ended_sec for run in good if run.ended_sec is not None]
    shown = [_spread(peak, max), _spread(least, min), _spread(took, max), _spread(ended, max)]
    memory = f"{case.memory_mib >> 10} GiB"
    return f"| {case.target} | {memory} | {case.crashkernel} | {len(good)} of {len(runs)} | {' | '.join(shown)} |"


def _spread(values: Sequence[float], worst: Callable[[Sequence[float]], float]) -> str:
    return f"{statistics.median(values):.0f} ({worst(values):.0f})" if values else "-"


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else 0.0


def _mib(value: object) -> str:
    return f"{_number(value) / _MIB:.0f}"


if __name__ == "__main__":
    sys.exit(main())
