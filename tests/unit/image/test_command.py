# SPDX-License-Identifier: GPL-2.0-or-later
"""`python3 -m kdumpd.image` as the service calls it, for a machine that is a folder."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import kdumpd

if TYPE_CHECKING:
    from kdumpd.image import BuildRequest

DISK = "sys/devices/pci0000:00/0000:00:02.0/nvme/nvme0/nvme0n1"
RELEASE = "6.1.0-test"


@pytest.fixture
def root(request_for: BuildRequest) -> Path:
    """The machine of a request, with one disk that holds everything."""
    root = request_for.root
    for folder in (DISK, "sys/class/block", "sys/dev/block", "proc/self", "etc", "dev/disk/by-uuid"):
        (root / folder).mkdir(parents=True)
    for link in ("sys/class/block/nvme0n1", "sys/dev/block/259:0"):
        (root / link).symlink_to(root / DISK)
    (root / "dev/nvme0n1").touch()
    (root / "dev/disk/by-uuid/1111-aaaa").symlink_to("../../nvme0n1")
    (root / "proc/self/mountinfo").write_text("27 1 259:0 / / rw - xfs /dev/nvme0n1 rw\n")
    return root


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["/usr/bin/python3", "-m", "kdumpd.image", *arguments],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(Path(kdumpd.__file__).parents[1]), "PATH": "/usr/bin:/bin"},
    )


def test_a_build_answers_with_one_line_of_json_and_passes_its_check(root: Path) -> None:
    done = _run("build", "--kernel", RELEASE, "--root", str(root), "--json")
    assert (done.returncode, done.stderr) == (0, "")
    facts = json.loads(done.stdout)
    assert done.stdout.count("\n") == 1
    assert facts["path"] == str(root / "var/lib/kdumpd" / RELEASE)
    assert facts["modules"] == 2
    record = json.loads(Path(facts["path"], "image.json").read_text())
    assert record["capture"]["destinations"][0]["device"] == "UUID=1111-aaaa"
    assert record["capture"]["destinations"][0]["directory"] == "/var/crash"
    checked = _run("check", facts["path"], "--json")
    assert json.loads(checked.stdout)["image_id"] == facts["image_id"]
    Path(facts["path"], "initrd").write_bytes(b"")
    broken = _run("check", facts["path"])
    assert broken.returncode == 1
    assert "has 0 bytes, its record says" in broken.stderr


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ("path\n", "kdump.conf:1: "),
        ("ext4 UUID=2222\n", "no filesystem with UUID=2222 is attached"),
        ("ext4 UUID=1111-aaaa\n", "holds xfs, but /etc/kdump.conf says ext4"),
    ],
)
def test_what_keeps_a_build_back_is_one_sentence(root: Path, config: str, words: str) -> None:
    (root / "etc/kdump.conf").write_text(config)
    for option in ((), ("--config", str(root / "etc/kdump.conf"))):
        done = _run("build", "--kernel", RELEASE, "--root", str(root), *option, "--json")
        assert done.returncode != 0
        assert words in done.stderr
        assert done.stderr.count("\n") == 1
        assert done.stdout == ""
    assert not (root / "var/lib").exists()


def test_a_kernel_that_is_not_installed_is_named(root: Path) -> None:
    done = _run("build", "--kernel", "9.9", "--root", str(root))
    assert done.returncode == 1
    assert "kernel 9.9 has no image at /boot/vmlinuz-9.9" in done.stderr
