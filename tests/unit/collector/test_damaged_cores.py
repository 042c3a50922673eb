# SPDX-License-Identifier: GPL-2.0-or-later
"""Cores with damaged headers, notes and page tables: a dump or a sentence, never a traceback, never a hang."""

from __future__ import annotations

import io
import random
import re
import time
from pathlib import Path

import pytest
from dump_check import check
from fake_kernel import NEW, OLD, FakeKernel

from kdumpd.collector.dump import Outcome, write_dump
from kdumpd.collector.options import DumpOptions
from kdumpd.collector.progress import Progress
from kdumpd.collector.source import FAULT, Source
from kdumpd.dumpfile.diskdump import Codec
from kdumpd.errors import KdumpError
from kdumpd.targets.files import CrashDirectory

_LONGEST_SEC = 5.0
_HEAD = 8192  # ELF headers and notes of the small core


def dump(core: Path, folder: Path) -> bool:
    """True when a dump came of it that verifies; False when a sentence did."""
    try:
        source = Source.open(core)
    except KdumpError as error:
        assert error.sentence
        return False
    with source.core, CrashDirectory.create(folder, "", "crash") as directory:
        source.log_lines()
        source.utsname()
        with directory.create_file("out") as file:
            outcome, quiet = Outcome(), Progress(3, stream=io.StringIO())
            try:
                write_dump(source, file, outcome, DumpOptions(levels=(31,), codec=Codec.ZSTD), quiet)
            except KdumpError as error:
                assert error.sentence
                return False
    # The net under the checks must not be what caught it.
    assert not [note for note in source.notes if FAULT in note]
    check(directory.path / "out", incomplete=source.core.incomplete)
    return True


def mutations(raw: bytes, kind: str, chance: random.Random) -> bytearray:
    """`raw` with one to four bytes of its headers changed, or one line of VMCOREINFO made up or blanked."""
    out = bytearray(raw)
    if kind == "bytes":
        for _ in range(chance.randint(1, 4)):
            out[chance.choice([chance.randrange(176), chance.randrange(_HEAD)])] = chance.randrange(256)
        return out
    lines = list(re.finditer(rb"^[A-Z]+\(.*?\)=(.*)$", raw[:_HEAD], re.MULTILINE))
    line = chance.choice(lines)
    if kind == "blanked":
        out[line.start() : line.end()] = b"\n" * (line.end() - line.start())
    else:
        value = "".join(chance.choice("0123456789abcdef-") for _ in range(line.end(1) - line.start(1)))
        out[line.start(1) : line.end(1)] = value.encode()
    return out


@pytest.mark.parametrize("kind", ["bytes", "blanked", "value"])
@pytest.mark.parametrize("keys", [OLD, NEW], ids=["old", "new"])
def test_damaged_headers(kind: str, keys: dict[str, int], tmp_path: Path) -> None:
    raw = FakeKernel(keys).write(tmp_path / "whole").read_bytes()
    chance = random.Random(kind)
    core = tmp_path / "core"
    core.write_bytes(raw)
    dumps = 0
    rounds = 120
    with core.open("r+b", buffering=0) as file:
        for _ in range(rounds):
            damaged = mutations(raw, kind, chance)
            file.seek(0)
            file.write(damaged[: 2 * _HEAD])
            begin = time.process_time()
            dumps += dump(core, tmp_path)
            assert time.process_time() - begin < _LONGEST_SEC
    if kind == "bytes":
        # Some of these make it no ELF file at all.
        assert dumps > rounds // 2
    else:
        assert dumps == rounds


@pytest.mark.parametrize("seed", range(8))
def test_damaged_page_tables_and_sections(seed: int, tmp_path: Path) -> None:
    kernel = FakeKernel(NEW)
    chance = random.Random(seed)
    for _ in range(200):
        kernel.memory[chance.randrange(kernel.top, kernel.root + 8192)] = chance.randrange(256)
    assert dump(kernel.write(tmp_path / "core"), tmp_path)


@pytest.mark.parametrize(
    "line",
    [
        "NUMBER(SECTION_SIZE_BITS)=40",  # struct pages of a section of 1 TiB were looked for, one by one
        "NUMBER(MAX_PHYSMEM_BITS)=18446744073709551615",  # was shifted by
    ],
)
def test_what_ten_thousand_damaged_cores_found(line: str, tmp_path: Path) -> None:
    """Each of these once cost a dump, or seconds: tests/dump/test_corrupted_input.py."""
    kernel = FakeKernel(NEW)
    kernel.extra = [line]
    begin = time.process_time()
    assert dump(kernel.write(tmp_path / "core"), tmp_path)
    assert time.process_time() - begin < 1
