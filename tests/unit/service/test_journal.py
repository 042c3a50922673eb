# SPDX-License-Identifier: GPL-2.0-or-later
"""Journal, catalog, notify and the unit files: what they promise each other."""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from kdumpd.service.journal import Event, Journal
from kdumpd.service.notify import watchdog_usec

TOP = Path(__file__).resolve().parents[3]
UNITS = TOP / "units"
CATALOG = UNITS / "kdumpd.catalog"


def test_ids_and_catalog_agree() -> None:
    ids = re.findall(r"^-- ([0-9a-f]{32})$", CATALOG.read_text(), re.MULTILINE)
    assert sorted(ids) == sorted(event.message_id for event in Event)
    assert len(set(ids)) == len(ids)


def test_journalctl_takes_the_catalog(tmp_path: Path) -> None:
    folder = tmp_path / "usr/lib/systemd/catalog"
    folder.mkdir(parents=True)
    (tmp_path / "var/lib/systemd/catalog").mkdir(parents=True)
    shutil.copy(CATALOG, folder)
    for action in ("--update-catalog", "--list-catalog"):
        done = subprocess.run(["journalctl", f"--root={tmp_path}", action], capture_output=True, text=True, check=True)
        assert "failed" not in done.stderr.lower()
    for event in Event:
        assert f"{event.message_id} kdumpd:" in done.stdout


def test_the_catalog_is_narrow_and_names_only_fields_that_are_sent() -> None:
    text = CATALOG.read_text()
    assert max(map(len, text.splitlines())) <= 76
    source = "".join(path.read_text() for path in (TOP / "kdumpd/service").rglob("*.py"))
    for field in set(re.findall(r"@KDUMPD_([A-Z_]+)@", text)):
        assert re.search(rf"\b{field.lower()}=", source), field


def test_without_systemd_a_line_has_its_priority() -> None:
    stream = io.StringIO()
    Journal(stream).tell(Event.LOADED, "Loaded\x1b[31m it\nMESSAGE=x", kernel="6.1", reason=None)
    assert stream.getvalue().startswith("<5>Loaded")
    assert stream.getvalue().count("\n") == 1
    assert "\x1b" not in stream.getvalue()


@pytest.mark.parametrize(
    ("environ", "usec"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "120000000"}, 60_000_000),
        ({"WATCHDOG_USEC": "120000000", "WATCHDOG_PID": str(os.getpid())}, 60_000_000),
        ({"WATCHDOG_USEC": "120000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
    ],
)
def test_the_watchdog_wants_half_of_its_interval(environ: dict[str, str], usec: int | None) -> None:
    assert watchdog_usec(environ) == usec
