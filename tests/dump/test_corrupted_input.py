# SPDX-License-Identifier: GPL-2.0-or-later
"""Ten thousand damaged cores: a dump that opens or one sentence, never a traceback, never a hang.

The cores are those of a kernel built by hand, of all the eras that its rules tell apart, so that a try takes
milliseconds. Each try is named by its number and can be repeated: `mutate(raw, random.Random(number))`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import faulthandler
import io
import os
import random
import re
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab import tools

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "unit" / "vmcore"))

from dump_check import check  # its folder has to be found first
from fake_kernel import FOLIO, MIDDLE, NEW, OLD, FakeKernel

from kdumpd.collector.dump import Outcome, write_dump
from kdumpd.collector.options import DumpOptions
from kdumpd.collector.progress import Progress
from kdumpd.collector.source import FAULT, Source
from kdumpd.dumpfile.diskdump import Codec
from kdumpd.dumpfile.reader import DiskdumpReader
from kdumpd.errors import KdumpError
from kdumpd.targets.files import CrashDirectory

TRIES = 10_000
PARTS = 10
LONGEST_SEC = 5.0
# Beyond this something waits or loops for good: all stacks are printed and the process ends.
HANG_SEC = 120
OPENED_BY_LIBKDUMPFILE = 4
HEAD = 8192  # ELF headers and notes of the small core
EHDR_AND_PHDRS = 64 + 4 * 56
ERAS = {"6.1": OLD, "6.3": FOLIO, "6.6": MIDDLE, "6.16": NEW}
# As /proc/vmcore has it: the kernel's image, and memory below and above what is reserved.
RANGES = [(0, 1500), (1500, 3000), (3100, 4096)]
ABSURD = ("0", "1", "-1", "18446744073709551615", "9223372036854775808", "0x", "", "zz", "1e9", "4096", "-129", "64")


@dataclasses.dataclass(slots=True)
class Found:
    """What came of the tries of one part."""

    dumps: int = 0
    refused: list[str] = dataclasses.field(default_factory=list)
    slowest_sec: float = 0.0


@dataclasses.dataclass(slots=True)
class Damage:
    """What is other in a core: its first bytes, single bytes behind them, its size."""

    head: bytearray
    size: int
    bytes: dict[int, int] = dataclasses.field(default_factory=dict)


def mutate(raw: bytes, chance: random.Random) -> Damage:
    """Damage of one kind: bytes of headers and notes, lines of VMCOREINFO, the file's end, its tables."""
    kind = chance.choices(list(KINDS), weights=[weight for _, weight in KINDS.values()])[0]
    damage = Damage(bytearray(raw[:HEAD]), len(raw))
    KINDS[kind][0](damage, chance)
    return damage


@contextlib.contextmanager
def damaged(core: Path, raw: bytes, damage: Damage) -> Iterator[None]:
    """The core with its damage, which is mended afterwards: writing all of it anew would take most of the time."""
    with core.open("r+b", buffering=0) as file:
        os.pwrite(file.fileno(), damage.head, 0)
        for at, value in damage.bytes.items():
            os.pwrite(file.fileno(), bytes([value]), at)
        file.truncate(damage.size)
        yield
        os.pwrite(file.fileno(), raw[:HEAD], 0)
        for at in damage.bytes:
            os.pwrite(file.fileno(), raw[at : at + 1], at)
        if damage.size < len(raw):
            os.pwrite(file.fileno(), raw[damage.size :], damage.size)


def header_bytes(damage: Damage, chance: random.Random) -> None:
    for _ in range(chance.randint(1, 4)):
        damage.head[chance.randrange(EHDR_AND_PHDRS)] = chance.randrange(256)


def note_bytes(damage: Damage, chance: random.Random) -> None:
    for _ in range(chance.randint(1, 16)):
        damage.head[chance.randrange(EHDR_AND_PHDRS, HEAD)] = chance.randrange(256)


def info_lines(damage: Damage, chance: random.Random) -> None:
    """One to three lines are changed, blanked, doubled with another value, or given an absurd one."""
    for _ in range(chance.randint(1, 3)):
        lines = list(re.finditer(rb"^[A-Z]+(?:\(.*?\))?=(.*)$", bytes(damage.head), re.MULTILINE))
        line = chance.choice(lines)
        begin, end = line.span(1)
        how = chance.choice(["digits", "blank", "absurd", "double"])
        if how == "blank":
            begin = line.start()
            value = b"\n" * (end - begin)
        elif how == "absurd":
            value = chance.choice(ABSURD).encode()[: end - begin].ljust(end - begin, b"\n")
        elif how == "double":
            # In the place of another line, so that the note keeps its size.
            other = chance.choice(lines)
            begin, end = other.span()
            key = line[0].partition(b"=")[0]
            value = (key + b"=" + b"%d" % chance.randrange(1 << 40))[: end - begin].ljust(end - begin, b"\n")
        else:
            value = "".join(chance.choice("0123456789abcdef-") for _ in range(end - begin)).encode()
        damage.head[begin:end] = value


def truncated(damage: Damage, chance: random.Random) -> None:
    """Then the dump is incomplete, and says so."""
    damage.size = chance.randrange(HEAD, damage.size)


def tables(damage: Damage, chance: random.Random) -> None:
    """Page tables, mem_section and struct pages of the dead kernel: all of it lies between 4 and 5 MiB."""
    for _ in range(chance.randint(1, 200)):
        damage.bytes[HEAD + chance.randrange(4 << 20, 5 << 20)] = chance.randrange(256)


KINDS = {
    "header bytes": (header_bytes, 25),
    "note bytes": (note_bytes, 25),
    "lines of VMCOREINFO": (info_lines, 35),
    "truncated": (truncated, 10),
    "tables": (tables, 5),
}


@pytest.fixture(autouse=True)
def watched() -> Iterator[None]:
    """A hang ends the test with the place where it hung."""
    faulthandler.dump_traceback_later(HANG_SEC * 5, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


def dump(core: Path, folder: Path) -> str | None:
    """None when a dump came of it that opens, else the sentence."""
    shutil.rmtree(folder / "crash", ignore_errors=True)
    try:
        with Source.open(core) as source, CrashDirectory.create(folder, "", "crash") as directory:
            source.log_lines()
            source.utsname()
            with directory.create_file("out") as file:
                quiet = Progress(3, stream=io.StringIO())
                write_dump(source, file, Outcome(), DumpOptions(levels=(31,), codec=Codec.ZSTD), quiet)
            # The net under the checks must not be what caught it.
            assert not [note for note in source.notes if FAULT in note]
            check(directory.path / "out", incomplete=source.core.incomplete)
    except KdumpError as error:
        return str(error)
    return None


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """One sound core of each era."""
    folder = tmp_path_factory.mktemp("whole")
    return [
        FakeKernel(keys, levels=4 + number % 2).write(folder / "core", RANGES).read_bytes()
        for number, keys in enumerate(ERAS.values())
    ]


@pytest.mark.parametrize("part", range(PARTS))
def test_damaged_cores(part: int, whole: list[bytes], tmp_path: Path) -> None:
    found = Found()
    cores = [tmp_path / era for era in ERAS]
    for core, raw in zip(cores, whole, strict=True):
        core.write_bytes(raw)
    opened: list[Path] = []
    for number in range(part * TRIES // PARTS, (part + 1) * TRIES // PARTS):
        core, raw = cores[number % len(cores)], whole[number % len(cores)]
        begin = time.process_time()
        with damaged(core, raw, mutate(raw, random.Random(number))):
            sentence = dump(core, tmp_path)
            # libkdumpfile believes a damaged PAGESIZE more than the header of the dump, which is right.
            sampled = number % 97 == 0 and set(re.findall(rb"PAGESIZE=[^\n]*", core.read_bytes())) == {b"PAGESIZE=4096"}
        found.slowest_sec = max(found.slowest_sec, time.process_time() - begin)
        if sentence is None:
            found.dumps += 1
            if len(opened) < OPENED_BY_LIBKDUMPFILE and sampled:
                opened.append((tmp_path / "crash" / "out").rename(tmp_path / f"dump{number}"))
        else:
            assert "\n" not in sentence
            found.refused.append(f"{number}: {sentence}")
    print(f"part {part}: {found.dumps} dumps, slowest {found.slowest_sec:.2f} s of CPU time")
    print("\n".join(found.refused))
    assert found.slowest_sec < LONGEST_SEC
    assert found.dumps >= TRIES // PARTS * 99 // 100, found.refused
    for path in opened:
        judged_by_libkdumpfile(path)


def judged_by_libkdumpfile(path: Path) -> None:
    """It opens, and libkdumpfile finds the pages that we wrote."""
    with DiskdumpReader(path) as ours:
        pfns = [int(pfn) for pfn in ours.pfns()[::200]]
    found = tools.read_with("kdumpfile", path, *map(str, pfns))
    assert found["format"] == "diskdump"
    assert None not in found["pages"].values()
