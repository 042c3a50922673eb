# SPDX-License-Identifier: GPL-2.0-or-later
"""`core_collector external makedumpfile`: what the real one gives lies there as its dump."""

from __future__ import annotations

import io
from pathlib import Path

from conftest import cores
from lab import pages
from lab.aptroot import run
from lab.vmcore import Vmcore

from kdumpd.collector.dump import Outcome, check_dump
from kdumpd.collector.external import run_external
from kdumpd.collector.options import DumpOptions
from kdumpd.collector.progress import Progress
from kdumpd.collector.source import Source
from kdumpd.config.core_collector import external_collector
from kdumpd.targets.files import CrashDirectory

ONE = cores(lambda kernel, levels: (kernel, levels) == ("6.1", 5))


@ONE
def test_it_is_what_makedumpfile_writes(core: Vmcore, tmp_path: Path) -> None:
    settings = external_collector(["makedumpfile", "-c", "--message-level", "7", "-d", "31"])
    source, outcome, progress = Source.open(core.path), Outcome(), Progress(5, stream=io.StringIO())
    with CrashDirectory.create(tmp_path, "crash", "host-1") as directory:
        with directory.create_file("vmcore") as file:
            run_external(settings.external, core.path, file, outcome, progress)
        check_dump(directory.path / "vmcore", source, outcome, DumpOptions.of(settings), progress)
        assert outcome.pages["verified"] > 20
        assert outcome.size_bytes == (directory.path / "vmcore").stat().st_size
        run(["makedumpfile", "-c", "-d", "31", str(core.path), str(tmp_path / "direct")], timeout=300)
        found = pages.compare(directory.path / "vmcore", tmp_path / "direct")
    assert (found.missing, found.extra, found.differing) == ([], [], [])
    assert found.common > 5000
