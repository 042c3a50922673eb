# SPDX-License-Identifier: GPL-2.0-or-later
"""A dump that was cut short: the first tenth answers like the whole, and less of it still holds the log."""

from __future__ import annotations

import hashlib
import resource
import signal
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest
from conftest import CRASH_READS, TOP, answers, collect, cores
from lab import tools
from lab.vmcore import Vmcore

from kdumpd.dumpfile.diskdump import DESCRIPTOR
from kdumpd.dumpfile.reader import DiskdumpReader

COMMANDS = ("sys", "bt", "foreach bt", "ps", "log", "mod", "files")
# struct disk_dump_header: signature, version and struct new_utsname, padded to 8; a timeval; then the status.
STATUS_AT = (8 + 4 + 6 * 65 + 7) // 8 * 8 + 16
INCOMPLETE = 8
SMALL_LOG = 64 << 10


@pytest.fixture(scope="module")
def whole(answered: dict[str, str]) -> dict[str, str]:
    """The answers of the whole dump."""
    found = {question: answered[question] for question in COMMANDS if question in answered}
    assert all(len(text.splitlines()) > 4 for text in found.values()), found
    return found


def headers_end(dump: Path) -> int:
    """Where the page data begins."""
    with DiskdumpReader(dump) as whole:
        return whole.header.descriptor_offset + whole.page_count * DESCRIPTOR.size


def interrupted(dump: Path, end: int, out: Path) -> Path:
    """What is on the disk when writing stopped at `end`: no descriptor without its data, and a header that says so."""
    with DiskdumpReader(dump) as whole:
        at, count = whole.header.descriptor_offset, whole.page_count
    data = bytearray(dump.read_bytes()[:end])
    table = np.frombuffer(data, dtype="<i8", offset=at, count=count * 3).reshape(-1, 3)
    table[table[:, 0] + (table[:, 1] & 0xFFFFFFFF) > end] = 0
    (status,) = struct.unpack_from("<i", data, STATUS_AT)
    struct.pack_into("<i", data, STATUS_AT, status | INCOMPLETE)
    out.write_bytes(data)
    return out


@CRASH_READS
def test_the_first_tenth_answers_like_the_whole(
    core: Vmcore, whole: dict[str, str], dump: Path, tmp_path: Path
) -> None:
    """Written for real: the file may not grow beyond a tenth, which is to the collector what a full disk is.

    crash's `mod` reads all of every module, on 6.1 over a megabyte when packed: of the dump of 22 MB that is in the
    first 13 %.
    """
    limit = dump.stat().st_size // 10
    too_much = {"mod"} if (core.kernel, core.levels) == ("6.1", 5) else set()
    wanted = {name: text for name, text in whole.items() if name not in too_much}

    def shrink() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    out = tmp_path / "out"
    done = subprocess.run(
        ["/usr/bin/python3", "-m", "kdumpd.collector", "-d", "31", "-z", str(core.path), str(out)],
        cwd=TOP, capture_output=True, text=True, timeout=120, preexec_fn=shrink, check=False,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    cut = tmp_path / "out.incomplete"
    assert cut.stat().st_size <= limit
    found = answers(core, cut, COMMANDS)
    assert {name: found[name] for name in wanted} == wanted


@cores(lambda kernel, levels: "arm64" in kernel or kernel == "6.12")
def test_drgn_finds_in_the_first_tenth_what_it_finds_in_the_whole(core: Vmcore, dump: Path, tmp_path: Path) -> None:
    cut = interrupted(dump, dump.stat().st_size // 10, tmp_path / "cut")
    found = tools.read_with("drgn", cut, core.vmlinux)
    assert found == tools.read_with("drgn", dump, core.vmlinux)
    assert found["panic_trace"]


LOST = "Wrong page size: 0"  # what libkdumpfile says of a descriptor of zeros


@cores(lambda kernel, levels: (kernel, levels) in (("5.10", 4), ("6.12", 5), ("6.12-arm64", 4)))
def test_libkdumpfile_reads_what_was_written_and_knows_what_was_lost(core: Vmcore, dump: Path, tmp_path: Path) -> None:
    """At any cut it opens the dump. A page that was lost is an error of its own, never zeros, nor one left out."""
    with DiskdumpReader(dump) as whole:
        pfns = whole.pfns().tolist()
        asked = pfns[:: len(pfns) // 200]
        wanted = {str(pfn): hashlib.sha256(whole.page(pfn) or b"").hexdigest() for pfn in asked}
        out = sorted(set(range(whole.header.max_mapnr)).difference(pfns))[:: whole.header.max_mapnr // 20]
    size = dump.stat().st_size
    for end in (headers_end(dump) + SMALL_LOG, size // 10, size // 2, size):
        cut = interrupted(dump, end, tmp_path / "cut")
        found = tools.read_with("kdumpfile", cut, *map(str, [*asked, *out]))
        assert (found["format"], found["release"]) == ("diskdump", core.release)
        with DiskdumpReader(cut) as ours:
            lost = {str(pfn) for pfn in asked if ours.page(pfn) is None}
        assert bool(lost) == (end < size)
        assert {pfn: found["pages"][pfn] for pfn in wanted} == wanted | dict.fromkeys(lost, LOST)
        assert {found["pages"][str(pfn)] for pfn in out} == {None}


@pytest.mark.parametrize("percent", [0.1, 1, 2, 5])
def test_a_little_more_than_headers_holds_the_log(percent: float, core: Vmcore, dump: Path, tmp_path: Path) -> None:
    # The log of a small guest is more than a thousandth of its dump.
    end = headers_end(dump) + max(SMALL_LOG, int(dump.stat().st_size * percent / 100))
    cut = interrupted(dump, end, tmp_path / "cut")
    collect("--dump-dmesg", core.path, tmp_path / "whole")
    collect("--dump-dmesg", cut, tmp_path / "log")
    assert (tmp_path / "log").read_text() == (tmp_path / "whole").read_text()
    assert core.marker in (tmp_path / "log").read_text()


@cores(lambda kernel, levels: (kernel, levels) == ("6.1", 4))
@pytest.mark.parametrize("percent", [2, 5, 50, 99.9])
def test_crash_opens_whatever_is_left(
    percent: float, core: Vmcore, dump: Path, whole: dict[str, str], tmp_path: Path
) -> None:
    """From 2 % more than the headers on it opens, and what is missing costs the answers that come last."""
    end = min(dump.stat().st_size, headers_end(dump) + int(dump.stat().st_size * percent / 100))
    found = answers(core, interrupted(dump, end, tmp_path / "cut"), COMMANDS)
    for command in COMMANDS if percent > 10 else ("sys", "ps", "log"):
        assert found[command] == whole[command]
