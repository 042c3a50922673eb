# SPDX-License-Identifier: GPL-2.0-or-later
"""Targets that are too small: the next level of the ladder, what matters first, or as far as it goes."""

from __future__ import annotations

import contextlib
import json
import resource
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import TOP
from lab.vmcore import Vmcore

from kdumpd.dumpfile.reader import DiskdumpReader, verify


@contextlib.contextmanager
def disk(folder: Path, mib: int) -> Iterator[Path]:
    """A filesystem of that size."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={mib}m", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def collect(*words: str | Path, limit: int | None = None) -> subprocess.CompletedProcess[str]:
    """kdumpd-collect, whose files may not grow beyond `limit` bytes."""

    def shrink() -> None:
        # The kernel answers EFBIG at this size, as it answers ENOSPC on a full disk; the signal is not wanted.
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit or resource.RLIM_INFINITY,) * 2)

    return subprocess.run(
        ["/usr/bin/python3", "-m", "kdumpd.collector", *map(str, words)],
        cwd=TOP, capture_output=True, text=True, timeout=300, preexec_fn=shrink, check=False,
    )  # fmt: skip


def test_the_ladder_goes_down_until_the_dump_fits(any_core: Vmcore, tmp_path: Path) -> None:
    with disk(tmp_path / "disk", 90) as folder:
        done = collect("-z", "-d", "1,31", "--json", any_core.path, folder / "out")
        assert done.returncode == 0, done.stderr
        said = json.loads(done.stdout)
        assert said["level"] == 31
        assert [step["step"] for step in said["steps"]] == ["not-level-1", "level-31"]
        verify(folder / "out")


def test_at_the_end_of_the_ladder_is_what_matters_first(any_core: Vmcore, tmp_path: Path) -> None:
    with disk(tmp_path / "disk", 15) as folder:
        done = collect("-z", "-d", "1,31", any_core.path, folder / "out")
        assert done.returncode == 1
        assert "what an analyst needs first" in done.stderr, done.stderr
        assert "Traceback" not in done.stderr
        assert not (folder / "out").exists()
        with DiskdumpReader(folder / "out.incomplete") as dump:
            assert dump.incomplete
            there = sum(dump.page(pfn) is not None for pfn in dump.pfns().tolist())
            assert there > 0.98 * dump.page_count


@pytest.mark.parametrize("mib", [1, 3, 6, 10, 15])
def test_whatever_was_written_when_room_ran_out_can_be_read(any_core: Vmcore, mib: int, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = collect("-z", "-d", "31", any_core.path, out, limit=mib << 20)
    assert done.returncode == 1
    assert "cannot be written" in done.stderr or "no room" in done.stderr
    assert not out.exists()
    with DiskdumpReader(tmp_path / "out.incomplete") as dump:
        assert dump.incomplete
        pages = [dump.page(pfn) for pfn in dump.pfns().tolist()]
        size = (tmp_path / "out.incomplete").stat().st_size
    # All but the last pages that would not have fitted: nothing that was written is out of reach.
    assert size > (mib << 20) - 8192
    assert sum(page is not None for page in pages) * 4096 > size
