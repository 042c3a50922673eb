# SPDX-License-Identifier: GPL-2.0-or-later
"""What goes wrong around a dump: one sentence, a status other than 0, and nothing under a final name."""

from __future__ import annotations

import os
import resource
import subprocess
from pathlib import Path

import pytest
from conftest import TOP, collect
from lab.vmcore import Vmcore

from kdumpd.dumpfile.reader import DiskdumpReader


def sentence(done: subprocess.CompletedProcess[str]) -> str:
    """The message, which must not be a traceback."""
    assert "Traceback" not in done.stderr
    return done.stderr


def test_a_full_disk_leaves_an_incomplete_dump_that_opens(any_core: Vmcore, tmp_path: Path) -> None:
    limit = 20 << 20  # the whole dump is about 36 MB

    def shrink() -> None:
        # The kernel answers EFBIG at this size, as it answers ENOSPC on a full disk; the signal is not wanted.
        import signal

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    out = tmp_path / "out"
    done = subprocess.run(
        ["/usr/bin/python3", "-m", "kdumpd.collector", "-d", "31", "-z", str(any_core.path), str(out)],
        cwd=TOP, capture_output=True, text=True, timeout=120, preexec_fn=shrink, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "cannot be written" in sentence(done)
    assert not out.exists()
    with DiskdumpReader(tmp_path / "out.incomplete") as dump:
        assert dump.incomplete
        readable = sum(dump.page(int(pfn)) is not None for pfn in dump.pfns())
        assert readable > 5000


@pytest.mark.parametrize("kept", [0, 10, 63, 64, 100, 4096, 1 << 20])
def test_a_truncated_core_is_never_a_success(any_core: Vmcore, kept: int, tmp_path: Path) -> None:
    cut = tmp_path / "cut"
    with any_core.path.open("rb") as file:
        cut.write_bytes(file.read(kept))
    done = subprocess.run(
        ["/usr/bin/python3", "-m", "kdumpd.collector", "-d", "31", "-z", str(cut), str(tmp_path / "out")],
        cwd=TOP, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert sentence(done)
    assert done.returncode == 1
    assert not (tmp_path / "out").exists()


def test_a_core_cut_in_the_middle_gives_what_is_there_and_is_no_success(any_core: Vmcore, tmp_path: Path) -> None:
    cut = tmp_path / "cut"
    subprocess.run(["cp", "--sparse=always", str(any_core.path), str(cut)], check=True)
    os.truncate(cut, any_core.path.stat().st_size // 2)
    message = sentence(collect("-d", "31", "-z", cut, tmp_path / "out", expect=1))
    assert "is cut short: " in message
    assert not (tmp_path / "out").exists()
    with DiskdumpReader(tmp_path / "out.incomplete") as dump:
        assert dump.incomplete
        assert dump.page_count > 1000


def test_bad_command_lines(any_core: Vmcore, tmp_path: Path) -> None:
    out = tmp_path / "out"
    taken = tmp_path / "taken"
    taken.write_text("precious")
    for words, status, text in [
        (["-d", "32", any_core.path, out], 2, "dump level"),
        (["-d", "x", any_core.path, out], 2, "dump level"),
        (["--frobnicate", any_core.path, out], 2, "frobnicate"),
        ([any_core.path], 2, "OUT"),
        (["-z", "-c", any_core.path, out], 2, "exclude each other"),
        ([tmp_path / "nowhere", out], 1, "cannot be opened"),
        ([TOP / "README.md", out], 1, "neither an ELF core file nor a kdump-compressed dump"),
        ([Path("/usr/bin/python3").resolve(), out], 1, "not a 64-bit little-endian core file"),
        ([any_core.path, taken], 2, "exists"),
        ([any_core.path, tmp_path / "no" / "such" / "folder"], 1, "cannot be made"),
    ]:
        message = sentence(collect(*words, expect=status))
        assert text in message, (words, message)
        assert len(message.splitlines()) <= 2
    assert taken.read_text() == "precious"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["taken"]


def test_dump_is_private_from_the_first_byte(dump: Path) -> None:
    assert dump.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("line", "wider"),
    [
        ("SIZE(page)=", True),
        ("SYMBOL(mem_section)=", True),
        ("NUMBER(PG_lru)=", False),
        ("NUMBER(PG_slab)=", False),
        ("OFFSET(page.compound_order)=", False),
        ("NUMBER(PAGE_BUDDY_MAPCOUNT_VALUE)=", False),
        ("SYMBOL(clear_seq)=", False),
        ("SYMBOL(prb)=", False),
        ("SYMBOL(init_top_pgt)=", False),
    ],
)
def test_a_damaged_vmcoreinfo_line_costs_no_page(any_core: Vmcore, line: str, wider: bool, tmp_path: Path) -> None:
    """Without a line the dump keeps at least every page that it keeps with it."""
    damaged = tmp_path / "damaged"
    subprocess.run(["cp", "--sparse=always", str(any_core.path), str(damaged)], check=True)
    with damaged.open("r+b") as file:
        head = file.read(1 << 20)
        at = head.index(line.encode(), head.index(b"OSRELEASE="))
        file.seek(at)
        file.write(b"#" * len(line))
    collect("-d", "31", "-z", any_core.path, tmp_path / "whole")
    collect("-d", "31", "-z", damaged, tmp_path / "out")
    with DiskdumpReader(tmp_path / "whole") as whole, DiskdumpReader(tmp_path / "out") as dump:
        assert set(whole.pfns().tolist()) <= set(dump.pfns().tolist())
        if wider:
            assert dump.page_count == dump.present_count
