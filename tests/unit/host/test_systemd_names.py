# SPDX-License-Identifier: GPL-2.0-or-later
"""kdumpd.host.units: names as systemd spells them, and whether it runs."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from kdumpd.host.units import have_units, instance


@pytest.mark.parametrize("text", ["6.1.0-56-cloud-amd64", "6.12.117+deb12-cloud-amd64", ".hidden", "a b/c~d", "ä_:x"])
def test_names_are_escaped_as_systemd_does(text: str) -> None:
    wanted = subprocess.run(["systemd-escape", text], capture_output=True, text=True, check=True).stdout.strip()
    if "/" not in text:  # which it turns into a dash; %I turns both back
        assert instance(text) == wanted
    back = subprocess.run(
        ["systemd-escape", "--unescape", instance(text)], capture_output=True, text=True, check=True
    ).stdout.rstrip("\n")
    assert back == text


def test_units_are_for_processes_of_systemd(tmp_path: Path) -> None:
    assert not have_units(tmp_path, {"INVOCATION_ID": "x"})
    (tmp_path / "run/systemd/system").mkdir(parents=True)
    assert have_units(tmp_path, {"INVOCATION_ID": "x"})
    assert not have_units(tmp_path, {})
