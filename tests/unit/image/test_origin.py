# SPDX-License-Identifier: GPL-2.0-or-later
"""kdumpd.image.origin: the files of another machine, and none of this one."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from kdumpd.errors import BuildError
from kdumpd.image import elf
from kdumpd.image.origin import PYTHON, Origin, applets

HERE = Origin()


def test_links_lead_where_that_machine_sees_them(tmp_path: Path) -> None:
    (tmp_path / "usr/lib").mkdir(parents=True)
    (tmp_path / "etc").mkdir()
    (tmp_path / "lib").symlink_to("/usr/lib")
    (tmp_path / "etc/passwd").symlink_to("/usr/lib/libx.so.1")
    (tmp_path / "usr/lib/libx.so").symlink_to("../../../../etc/passwd")
    (tmp_path / "usr/lib/libx.so.1").write_text("x")
    origin = Origin(root=tmp_path)
    assert origin.real("/lib/libx.so") == "/usr/lib/libx.so.1"
    assert origin.place("/lib/libx.so") == f"{tmp_path}/usr/lib/libx.so.1"
    assert origin.is_file("/etc/passwd")
    assert not origin.is_file("/etc/hostname")


def test_links_in_a_circle_get_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(BuildError, match="goes round in circles"):
        Origin(root=tmp_path).place("/a")


def test_a_file_of_this_machine_ends_the_build(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/os-release").touch()
    origin = Origin(root=tmp_path)
    assert origin.inside(f"{tmp_path}/etc/os-release") == "/etc/os-release"
    assert origin.inside("/etc/os-release") == "/etc/os-release"
    with pytest.raises(BuildError, match="took /usr/bin/env from this machine"):
        origin.inside("/usr/bin/env")
    assert HERE.inside("/usr/bin/env") == "/usr/bin/env"


def test_a_sysroot_without_python_or_emulator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    origin = Origin(root=tmp_path)
    with pytest.raises(BuildError, match=f"no {PYTHON} in"), origin.python("aarch64"):
        pass
    (tmp_path / "usr/bin").mkdir(parents=True)
    (tmp_path / "usr/bin/python3").touch()
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BuildError, match="qemu-aarch64 is not installed"), origin.python("aarch64"):
        pass


def test_libraries_come_from_the_sysroot_alone(tmp_path: Path) -> None:
    """A program of this machine in a sysroot without its libraries: they are missing, though they are here."""
    source = os.path.realpath(PYTHON)
    target = Path(f"{tmp_path}{source}")
    target.parent.mkdir(parents=True)
    target.write_bytes(Path(source).read_bytes())
    origin = Origin(root=tmp_path)
    with pytest.raises(BuildError, match="is not installed"):
        elf.find_libraries([source], origin=origin)
    wanted = elf.find_libraries([source])
    for library in wanted:
        copy = Path(f"{tmp_path}{library.source}")
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(Path(library.source).read_bytes())
    found = elf.find_libraries([source], origin=origin)
    assert {Path(one.target).name for one in found} == {Path(one.target).name for one in wanted}


def test_applets_are_read_without_running_anything() -> None:
    busybox = Path("/usr/bin/busybox" if os.path.exists("/usr/bin/busybox") else "/bin/busybox")
    listed = subprocess.run([busybox, "--list"], capture_output=True, text=True, check=True).stdout.split()
    assert applets(busybox.read_bytes()) == sorted(listed)
    assert applets(b"no busybox") == []
