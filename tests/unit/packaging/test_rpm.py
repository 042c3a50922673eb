# SPDX-License-Identifier: GPL-2.0-or-later
"""The RPM package: it builds, and holds what the Debian package holds."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parents[3]


def rpm(*words: str) -> list[str]:
    done = subprocess.run(["rpm", "-qp", *words], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The .rpm of this checkout."""
    words = [str(TOP / "packaging/build-rpm"), str(tmp_path_factory.mktemp("rpm") / "build")]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_it_holds_what_the_debian_package_holds(package: str) -> None:
    files = set(rpm("--list", package))
    for line in (TOP / "packaging/debian/install").read_text().splitlines():
        source, folder = line.split()
        if source.startswith("kernel/post"):
            continue  # Debian's kernel packages alone call these
        folder = folder.replace("zsh/vendor-completions", "zsh/site-functions")
        assert f"/{folder}/{Path(source).name}" in files
    for page in (TOP / "man").glob("*.rst"):
        section = page.stem.rpartition(".")[2]
        assert any(name.startswith(f"/usr/share/man/man{section}/{page.stem}") for name in files), page
    for name in ("/usr/bin/kdumpctl", "/usr/bin/kdumpd", "/usr/bin/kdumpd-collect"):
        assert name in files
    modules = [name for name in files if name.endswith("/kdumpd/service/engine.py")]
    assert len(modules) == 1


def test_it_stands_in_the_way_of_the_others(package: str) -> None:
    assert {"kdump-tools", "kdump-utils"} <= set(rpm("--conflicts", package))
    assert rpm("--configfiles", package) == ["/etc/kdump.conf"]
    (state,) = (line for line in rpm("--dump", package) if line.startswith("/var/lib/kdumpd "))
    assert state.split()[4] == "040700"


def test_its_programs_start(package: str, tmp_path: Path) -> None:
    archive = subprocess.run(["rpm2cpio", package], capture_output=True, check=True).stdout
    subprocess.run(["cpio", "-idm", "--quiet"], input=archive, cwd=tmp_path, check=True)
    (site,) = tmp_path.glob("usr/lib*/python3*/site-packages")
    for program in ("kdumpctl", "kdumpd", "kdumpd-collect"):
        words = ["/usr/bin/python3", str(tmp_path / "usr/bin" / program), "--version"]
        done = subprocess.run(words, capture_output=True, text=True, check=False, env={"PYTHONPATH": str(site)})
        assert done.stdout.startswith(f"{program} "), done.stderr
