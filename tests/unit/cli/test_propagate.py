# SPDX-License-Identifier: GPL-2.0-or-later
"""kdumpctl propagate and test-target, with a real server and the real ssh(1)."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from ctl import kdumpctl
from lab.sshd import Sshd, make_key, running


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Sshd]:
    with running(tmp_path / "sshd") as found:
        yield found


@pytest.fixture
def root(tmp_path: Path, server: Sshd) -> Path:
    """A machine whose administrator can log in with the key that `server` knows."""
    folder = tmp_path / "root"
    (folder / "etc").mkdir(parents=True)
    (folder / "etc/kdump.conf").write_text(f"ssh root@127.0.0.1:{server.port}\npath {tmp_path}/dumps\n")
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin/ssh"
    program.write_text(f'#!/bin/sh\nexec /usr/bin/ssh -F none -o IdentitiesOnly=yes -i {server.key} "$@"\n')
    program.chmod(0o755)
    return folder


def run(root: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return kdumpctl(*words, f"--root={root}", PATH=f"{root.parent}/bin:/usr/bin:/bin")


def fingerprint(server: Sshd) -> str:
    words = ["ssh-keygen", "-l", "-f", str(server.host_key)]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout.split()[1]


def test_a_round_trip_from_nothing(server: Sshd, root: Path, tmp_path: Path) -> None:
    done = run(root, "propagate", "--fingerprint", fingerprint(server))
    assert done.returncode == 0, done.stderr
    assert "works" in done.stdout
    ssh = root / "etc/kdumpd/ssh"
    assert (ssh / "id_ed25519").stat().st_mode & 0o777 == 0o600
    assert (ssh / "known_hosts").read_text().startswith(f"[127.0.0.1]:{server.port} ssh-ed25519 ")
    (line,) = (server.folder / ".ssh/authorized_keys").read_text().splitlines()
    assert line.startswith("restrict ssh-ed25519 ")
    assert list((tmp_path / "dumps").iterdir()) == []
    # What is ready stays as it is.
    again = run(root, "propagate")
    assert again.returncode == 0, again.stderr
    assert len((server.folder / ".ssh/authorized_keys").read_text().splitlines()) == 1
    tried = json.loads(run(root, "test-target", "--json").stdout)["targets"]
    assert [one["result"] for one in tried] == ["works"]


def test_nothing_is_trusted_without_a_word(server: Sshd, root: Path) -> None:
    done = run(root, "propagate")
    assert done.returncode == 1
    assert "was not pinned" in done.stderr
    wrong = run(root, "propagate", "--fingerprint", "SHA256:x")
    assert "not SHA256:x" in wrong.stderr
    assert not (root / "etc/kdumpd/ssh/known_hosts").exists()
    assert not (server.folder / ".ssh").exists()


def test_a_host_key_that_changed_is_not_pinned_by_yes(server: Sshd, root: Path) -> None:
    assert run(root, "propagate", "--yes").returncode == 0
    server.stop()
    server.host_key.unlink()
    make_key(server.host_key)
    server.start()
    done = run(root, "propagate", "--yes")
    assert done.returncode == 1
    assert "another key than the one that is pinned" in done.stderr
    tried = run(root, "test-target")
    assert tried.returncode == 1
    assert "another host key than the pinned one" in tried.stdout
    assert run(root, "propagate", "--fingerprint", fingerprint(server)).returncode == 0
    known = (root / "etc/kdumpd/ssh/known_hosts").read_text().splitlines()
    assert len(known) == 1


def test_a_configuration_without_such_a_target(root: Path) -> None:
    (root / "etc/kdump.conf").write_text("ext4 UUID=x\n")
    done = run(root, "propagate")
    assert done.returncode == 2
    assert "names no ssh target" in done.stderr
    assert "on a disk of this machine" in run(root, "test-target").stdout
