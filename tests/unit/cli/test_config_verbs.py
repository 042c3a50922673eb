# SPDX-License-Identifier: GPL-2.0-or-later
"""kdumpctl show-config, check-config, import-config."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from ctl import kdumpctl
from fake_machine import FakeMachine

from kdumpd.config.parse import read_config


def test_show_config(machine: FakeMachine) -> None:
    machine.config("path /srv\n")
    machine.write("etc/kdump.conf.d/10-x.conf", "final_action halt\nfrobnicate 1\n")
    done = kdumpctl("show-config", f"--root={machine.root}")
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert lines[0] == "# /etc/kdump.conf, /etc/kdump.conf.d/10-x.conf"
    pairs = dict(line.split(None, 1) for line in lines[1:])
    assert (pairs["path"], pairs["final_action"], pairs["failure_action"]) == ("/srv", "halt", "reboot")
    assert "warning: /etc/kdump.conf.d/10-x.conf:2: unknown directive" in done.stderr
    facts = json.loads(kdumpctl("show-config", "--json", f"--root={machine.root}").stdout)
    assert facts["settings"]["path"] == "/srv"
    assert facts["problems"][0]["line"] == 2


def test_without_a_file_all_is_default(tmp_path: Path) -> None:
    done = kdumpctl("show-config", f"--root={tmp_path}")
    assert done.stdout.startswith("# no file: all defaults\n")


def test_check_config(machine: FakeMachine, tmp_path: Path) -> None:
    assert kdumpctl("check-config", f"--root={machine.root}").returncode == 0
    other = tmp_path / "other.conf"
    other.write_text("pth /srv\nfinal_action explode\n")
    done = kdumpctl("check-config", str(other))
    assert done.returncode == 1
    flat = " ".join(done.stderr.split())
    assert f"warning: {other}:1: unknown directive 'pth'; did you mean 'path'?" in flat
    assert f"error: {other}:2: 'explode' is not an action" in flat
    facts = json.loads(kdumpctl("check-config", str(other), "--json").stdout)
    assert [(entry["line"], entry["fatal"]) for entry in facts] == [(1, False), (2, True)]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (None, "cannot be read: No such file"),
        (b"path /x\n\xff\n", ":2: it is not UTF-8"),
        (b"#" * (2 << 20), "too long"),
    ],
)
def test_files_that_cannot_be_read(tmp_path: Path, data: bytes | None, words: str) -> None:
    file = tmp_path / "x.conf"
    if data is not None:
        file.write_bytes(data)
    for verb in ("check-config", "import-config"):
        done = kdumpctl(verb, str(file), f"--root={tmp_path}")
        assert done.returncode == 1
        assert words in done.stderr
        assert done.stderr.count("\n") <= 2


def test_import_config(machine: FakeMachine) -> None:
    machine.write("etc/default/kdump-tools", 'USE_KDUMP=1\nKDUMP_COREDIR="/srv/crash"\nKDUMP_COMPRESSION=xz\n')
    where = machine.root / "etc/kdump.conf.d/50-imported.conf"
    done = kdumpctl("import-config", "--dry-run", f"--root={machine.root}")
    assert (done.returncode, done.stdout) == (0, "path /srv/crash\n")
    assert "/etc/default/kdump-tools:3: 'xz' is not taken over" in " ".join(done.stderr.split())
    assert not where.exists()
    assert kdumpctl("import-config", f"--root={machine.root}").returncode == 0
    assert read_config(machine.root).path == "/srv/crash"
    assert where.stat().st_mode & 0o777 == 0o644
    again = kdumpctl("import-config", f"--root={machine.root}")
    assert again.returncode == 1
    assert "--force" in again.stderr
    assert [path.name for path in where.parent.iterdir()] == [where.name]
    machine.write("etc/default/kdump-tools", "KDUMP_COREDIR=/other\n")
    done = kdumpctl("import-config", "--force", "--json", f"--root={machine.root}")
    assert json.loads(done.stdout)["lines"][0]["value"] == "/other"
    assert read_config(machine.root).path == "/other"


def test_nothing_to_import(tmp_path: Path) -> None:
    done = kdumpctl("import-config", f"--root={tmp_path}")
    assert done.returncode == 1
    assert "neither /etc/default/kdump-tools nor /etc/sysconfig/kdump" in done.stderr
