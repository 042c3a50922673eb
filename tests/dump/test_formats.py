# SPDX-License-Identifier: GPL-2.0-or-later
"""Every format and codec holds the same pages, and the field's own tools read it: crash, makedumpfile, gdb."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from conftest import collect, cores
from lab import pages, tools
from lab.aptroot import run
from lab.vmcore import Vmcore

# What a format does with pages does not depend on the kernel; how readers find their way in ELF might.
ONE = cores(lambda kernel, levels: (kernel, levels) == ("6.1", 5))
TWO = cores(lambda kernel, levels: (kernel, levels) in (("6.1", 5), ("6.12", 5)))
CODECS = {"-c": "zlib", "-l": "lzo", "-p": "snappy", "-z": "zstd"}
SYS = ["sys", "bt"]


def same(dump: Path, reference: Path) -> None:
    """Page by page, by a reader that is not ours."""
    found = pages.compare(dump, reference)
    assert (found.missing, found.extra, found.differing) == ([], [], [])
    assert found.common > 5000


def makedumpfile(*words: str | Path, stdin: Path | None = None) -> None:
    argv = [*tools.program("makedumpfile"), *map(str, words)]
    if stdin is None:
        run(argv, timeout=300)
        return
    with stdin.open("rb") as file:
        subprocess.run(argv, stdin=file, check=True, timeout=300, capture_output=True)


def rearranged(stream: Path, out: Path) -> None:
    with stream.open("rb") as file:
        subprocess.run(
            ["/usr/bin/python3", "-m", "kdumpd.collector", "-R", str(out)],
            stdin=file, check=True, timeout=300, capture_output=True, cwd=Path(__file__).parents[2],
        )  # fmt: skip


@ONE
@pytest.mark.parametrize("option", [option for option in CODECS if option != "-z"])  # which test_readers shows
def test_crash_reads_every_codec(option: str, core: Vmcore, dump: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    collect("-d", "31", option, core.path, out)
    same(out, dump)
    assert tools.crash(core.vmlinux, out, SYS).count("sysrq_handle_crash") == 1


@ONE
@pytest.mark.parametrize("option", ["-c", "-l", "-z"])
def test_makedumpfile_filters_our_dumps_again(option: str, core: Vmcore, dump: Path, tmp_path: Path) -> None:
    """Not those with snappy: Debian builds makedumpfile without it."""
    out, again = tmp_path / "out", tmp_path / "again"
    collect("-d", "0", option, core.path, out)
    makedumpfile("-c", "-d", "31", out, again)
    same(again, dump)


@ONE
def test_we_filter_makedumpfiles_dumps_again(core: Vmcore, dump: Path, tmp_path: Path) -> None:
    for number, words in enumerate((["-c"], ["-l"], ["-z"], [], ["-E"])):
        theirs, again = tmp_path / f"theirs{number}", tmp_path / f"again{number}"
        makedumpfile("-d", "1" if words != ["-E"] else "0", *words, core.path, theirs)
        collect("-d", "31", "-z", theirs, again)
        same(again, dump)
        theirs.unlink()


@ONE
def test_flattened_both_ways(core: Vmcore, dump: Path, tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    collect("-F", "-d", "31", "-z", core.path, ours)
    makedumpfile("-R", tmp_path / "from-ours", stdin=ours)
    same(tmp_path / "from-ours", dump)
    with theirs.open("wb") as file:
        argv = [*tools.program("makedumpfile"), "-F", "-c", "-d", "31", str(core.path)]
        subprocess.run(argv, stdout=file, stderr=subprocess.DEVNULL, check=True, timeout=300)
    rearranged(theirs, tmp_path / "from-theirs")
    same(tmp_path / "from-theirs", dump)
    rearranged(ours, tmp_path / "ours-again")
    same(tmp_path / "ours-again", dump)
    # Both are read as they are, too.
    collect("-d", "31", "-z", theirs, tmp_path / "again")
    same(tmp_path / "again", dump)
    assert "sysrq_handle_crash" in tools.crash(core.vmlinux, ours, SYS)


@TWO
def test_elf_is_read_by_crash_makedumpfile_and_gdb(core: Vmcore, dump: Path, tmp_path: Path) -> None:
    elf = tmp_path / "elf"
    collect("-E", "-d", "31", core.path, elf)
    makedumpfile("-c", "-d", "31", elf, tmp_path / "theirs")
    same(tmp_path / "theirs", dump)
    collect("-c", "-d", "31", elf, tmp_path / "ours")
    same(tmp_path / "ours", dump)
    from_elf, from_dump = (tools.crash(core.vmlinux, path, SYS).splitlines() for path in (elf, dump))
    assert [line for line in from_elf if str(elf) not in line] == [line for line in from_dump if str(dump) not in line]
    # Without symbols gdb still knows from the notes where the first cpu stood, and reads what lies there.
    found = run(["gdb", "-q", "-batch", "-ex", "x/4i $rip", "--core", str(elf)], timeout=120)
    assert "Cannot access memory" not in found
    assert found.count("=>") == 1


@ONE
def test_a_dump_becomes_elf_and_a_dump_again(core: Vmcore, dump: Path, tmp_path: Path) -> None:
    elf = tmp_path / "elf"
    collect("-E", "-d", "31", dump, elf)
    collect("-z", "-d", "31", elf, tmp_path / "back")
    same(tmp_path / "back", dump)
    assert "sysrq_handle_crash" in tools.crash(core.vmlinux, elf, SYS)
    makedumpfile("-c", "-d", "31", elf, tmp_path / "theirs")
    same(tmp_path / "theirs", dump)


@ONE
def test_split_and_reassembled_both_ways(core: Vmcore, dump: Path, tmp_path: Path) -> None:
    ours = [tmp_path / f"ours{number}" for number in range(3)]
    theirs = [tmp_path / f"theirs{number}" for number in range(3)]
    collect("--split", "-z", "-d", "31", core.path, *ours)
    makedumpfile("--split", "-c", "-d", "31", core.path, *theirs)
    makedumpfile("--reassemble", *ours, tmp_path / "by-them")
    same(tmp_path / "by-them", dump)
    for number, parts in enumerate((ours, theirs)):
        out = tmp_path / f"by-us{number}"
        collect("--reassemble", *parts[::-1], out)
        same(out, dump)
    collect("--verify", *ours, *theirs)


@ONE
def test_both_logs(core: Vmcore, dump: Path, tmp_path: Path) -> None:
    makedumpfile("--dump-dmesg", core.path, tmp_path / "theirs")
    theirs = (tmp_path / "theirs").read_text(errors="replace")
    assert collect("--dump-dmesg", dump).stdout.split() == theirs.split()
    # Nobody cleared the log of these guests.
    assert collect("--partial-dmesg", core.path).stdout == collect("--dump-dmesg", core.path).stdout


@ONE
def test_memory_usage_is_makedumpfiles(core: Vmcore, tmp_path: Path) -> None:
    found = json.loads(collect("--mem-usage", "--json", core.path).stdout)["pages"]
    done = subprocess.run(
        [*tools.program("makedumpfile"), "-d31", "-z", "--message-level", "16", str(core.path), str(tmp_path / "out")],
        capture_output=True, text=True, check=True, timeout=300,
    )  # fmt: skip
    theirs = {}
    for line in done.stdout.splitlines():
        name, _, value = line.partition(":")
        if value.strip().startswith("0x"):
            theirs[" ".join(name.split())] = int(value.split()[0], 16)
    assert found["free"] == theirs["Free pages"]
    assert found["cache"] == theirs["Non-private cache pages"]
    assert found["cache_private"] == theirs["Private cache pages"]
    assert found["user"] == theirs["User process data pages"]
    assert found["zero"] == theirs["Pages filled with zero"]


@TWO
def test_what_vmcoreinfo_lacks_comes_from_vmlinux(core: Vmcore, dump: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    run(["cp", "--sparse=always", str(core.path), str(damaged)], timeout=60)
    with damaged.open("r+b") as file:
        head = file.read(1 << 20)
        for line in (b"SIZE(page)=", b"OFFSET(page.flags)=", b"NUMBER(PG_lru)=", b"SYMBOL(mem_section)=",
                     b"SYMBOL(init_top_pgt)=", b"SYMBOL(prb)="):  # fmt: skip
            at = head.index(line, head.index(b"OSRELEASE="))
            file.seek(at)
            file.write(b"#" * len(line))
    out = tmp_path / "out"
    collect("-d", "31", "-z", "-x", core.vmlinux, damaged, out)
    same(out, dump)
    assert core.marker in collect("--dump-dmesg", "-x", core.vmlinux, damaged).stdout
    other = tmp_path / "other"
    other.write_bytes(core.vmlinux.read_bytes().replace(f"Linux version {core.release}".encode(),
                                                        f"Linux version 9{core.release[1:]}".encode()))  # fmt: skip
    assert "is of kernel 9" in collect("-x", other, damaged, tmp_path / "none", expect=1).stderr
