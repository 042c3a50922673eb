# SPDX-License-Identifier: GPL-2.0-or-later
"""A real crash, encrypted: nothing can be read of it, all comes back, and of a part what an analyst needs first."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from conftest import TOP, collect
from lab import tools
from lab.vmcore import Vmcore

from kdumpd.dumpfile.reader import DiskdumpReader


class Sealed:
    """The dump of `core`, encrypted, and the key to it."""

    def __init__(self, core: Vmcore, folder: Path) -> None:
        self.key = folder / "key.txt"
        subprocess.run(["age-keygen", "-o", self.key], capture_output=True, check=True)
        done = subprocess.run(["age-keygen", "-y", self.key], capture_output=True, text=True, check=True)
        self.public = done.stdout.strip()
        self.path = folder / "vmcore.age"
        collect("-d", "31", "-z", "--encrypt-to", self.public, core.path, self.path)

    def decrypt(self, path: Path, out: Path, expect: int = 0) -> str:
        command = ["/usr/bin/python3", "-m", "kdumpd.cli", "decrypt", str(path), "-i", str(self.key), "-o", str(out)]
        done = subprocess.run(command, cwd=TOP, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == expect, done.stdout + done.stderr
        return done.stderr


@pytest.fixture(scope="module")
def sealed(any_core: Vmcore, tmp_path_factory: pytest.TempPathFactory) -> Sealed:
    return Sealed(any_core, tmp_path_factory.mktemp("sealed"))


def test_it_comes_back_page_for_page(any_core: Vmcore, sealed: Sealed, tmp_path: Path) -> None:
    raw = sealed.path.read_bytes()
    for words in (any_core.marker, "Linux version", "KDUMP   ", "VMCOREINFO"):
        assert words.encode() not in raw
    sealed.decrypt(sealed.path, tmp_path / "out")
    collect("--verify", tmp_path / "out/vmcore")
    collect("-d", "31", "-z", any_core.path, tmp_path / "clear")
    with DiskdumpReader(tmp_path / "out/vmcore") as ours, DiskdumpReader(tmp_path / "clear") as theirs:
        pfns = ours.pfns()
        assert (pfns == theirs.pfns()).all()
        assert all(ours.page(pfn) == theirs.page(pfn) for pfn in pfns[::7].tolist())


def test_the_log_is_as_secret(any_core: Vmcore, sealed: Sealed, tmp_path: Path) -> None:
    collect("--dump-dmesg", "--encrypt-to", sealed.public, any_core.path, tmp_path / "log.txt.age")
    assert any_core.marker.encode() not in (tmp_path / "log.txt.age").read_bytes()
    collect("--dump-dmesg", any_core.path, tmp_path / "clear")
    sealed.decrypt(tmp_path / "log.txt.age", tmp_path / "out")
    assert (tmp_path / "out/log.txt").read_bytes() == (tmp_path / "clear").read_bytes()


def test_crash_opens_what_is_left_of_it(any_core: Vmcore, sealed: Sealed, tmp_path: Path) -> None:
    """As when the power goes: the file ends in the middle of a chunk."""
    (tmp_path / "cut.age").write_bytes(sealed.path.read_bytes()[: sealed.path.stat().st_size * 15 // 100 + 1])
    said = sealed.decrypt(tmp_path / "cut.age", tmp_path / "out", expect=1)
    assert "was cut or damaged at its end" in said
    shown = tools.crash(any_core.vmlinux, tmp_path / "out/cut.incomplete", ["sys", "bt", "ps", "log"])
    assert any_core.marker in shown
    assert "sysrq_handle_crash" in shown
    assert "kthreadd" in shown
