# SPDX-License-Identifier: GPL-2.0-or-later
"""`kdumpctl rehearse`: a scratch machine crashes with the very kernel and image of another one, and has to deliver."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from lab import cpio, tiny, whole

_UUID = "0f0e0d0c-0b0a-4908-8706-050403020100"


def _machine(root: Path, kernel: whole.WholeKernel, *, named: bool = True) -> None:
    """Facts of a machine with an ext4 filesystem on an NVMe disk, whose dumps go to /var/crash. One that is not `named`
    has no UUID that anybody knows."""
    texts = {
        "proc/sys/kernel/osrelease": f"{kernel.release}\n",
        "proc/sys/kernel/arch": "x86_64\n",
        "proc/sys/kernel/random/boot_id": "11111111-2222-3333-4444-555555555555\n",
        "proc/cmdline": "BOOT_IMAGE=/boot/vmlinuz root=/dev/nvme0n1 ro console=tty0 crashkernel=192M quiet\n",
        "proc/cpuinfo": "processor\t: 0\napicid\t\t: 0\n",
        "proc/meminfo": "MemTotal:        4028416 kB\nMemFree:         3928416 kB\n",
        "proc/iomem": "00001000-7fffffff : System RAM\n  60000000-6bffffff : Crash kernel\n",
        "proc/self/mountinfo": "26 1 259:0 / / rw,relatime shared:1 - ext4 /dev/nvme0n1 rw\n",
        "sys/kernel/kexec_crash_loaded": "0\n",
        "sys/kernel/kexec_crash_size": f"{192 << 20}\n",
        "sys/devices/pci0000:00/0000:00:04.0/nvme/nvme0/nvme0n1/dev": "259:0\n",
        "sys/devices/pci0000:00/0000:00:04.0/modalias": "pci:v00001B36d00000010sv00001AF4sd00001100bc01sc08i02\n",
        "dev/nvme0n1": "",
    }
    for path, text in texts.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    links = {
        "sys/devices/pci0000:00/0000:00:04.0/driver": root / "sys/bus/pci/drivers/nvme",
        "sys/class/block/nvme0n1": root / "sys/devices/pci0000:00/0000:00:04.0/nvme/nvme0/nvme0n1",
        "sys/dev/block/259:0": root / "sys/devices/pci0000:00/0000:00:04.0/nvme/nvme0/nvme0n1",
        **({f"dev/disk/by-uuid/{_UUID}": Path("../../nvme0n1")} if named else {}),
        "boot": kernel.root / "boot",
        "lib": kernel.root / "lib",
    }
    (root / "sys/bus/pci/drivers/nvme").mkdir(parents=True)
    (root / "var/crash").mkdir(parents=True)
    for path, target in links.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).symlink_to(target)


def _kdumpctl(root: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["/usr/bin/python3", "-m", "kdumpd.cli", "--root", str(root), *words],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=400,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(tiny.TOP), "LC_ALL": "C.UTF-8"},
    )


@pytest.fixture
def root(scratch: Path) -> Path:
    """A machine with a fresh image, which nobody loaded."""
    return _with_image(scratch / "root")


def _with_image(root: Path, *, named: bool = True) -> Path:
    kernel = whole.whole("6.1")
    _machine(root, kernel, named=named)
    folder = root / "var/lib/kdumpd"
    folder.mkdir(mode=0o700, parents=True)
    tiny.build_image("path /var/crash\n", root, kernel, folder / kernel.release)
    return root


def _break(folder: Path) -> Callable[[], None]:
    """Puts settings that are none behind the image, in a way that its record agrees with; returns what undoes it."""
    before = {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    settings = folder.parent / "settings"
    settings.write_text("{")
    initrd = folder / "initrd"
    whole_image = initrd.read_bytes()
    further = cpio.archive(folders=[], files={"etc/kdumpd/capture.json": settings})
    initrd.write_bytes(whole_image + bytes(-len(whole_image) % 512) + further)
    record = json.loads((folder / "image.json").read_text())
    record["packed_bytes"] = initrd.stat().st_size
    record["packed_sha256"] = hashlib.sha256(initrd.read_bytes()).hexdigest()
    (folder / "image.json").write_text(json.dumps(record))

    def undo() -> None:
        for path, data in before.items():
            path.write_bytes(data)

    return undo


def _load(root: Path, release: str) -> None:
    """What the service notes when it loads the image that is there."""
    folder = root / "var/lib/kdumpd" / release
    record = json.loads((folder / "image.json").read_text())
    known = json.loads((root / "var/lib/kdumpd/rehearsal.json").read_text())
    loaded = {
        "boot_id": "11111111-2222-3333-4444-555555555555",
        "release": release,
        "image_id": record["image_id"],
        "kernel": str(root / f"boot/vmlinuz-{release}"),
        "initrd": str(folder / "initrd"),
        "initrd_sha256": hashlib.sha256((folder / "initrd").read_bytes()).hexdigest(),
        "kernel_sha256": hashlib.sha256((root / f"boot/vmlinuz-{release}").read_bytes()).hexdigest(),
        "cmdline": known["cmdline"],
        "loaded_usec": 1,
    }
    (root / "run/kdumpd").mkdir(parents=True, exist_ok=True)
    (root / "run/kdumpd/loaded.json").write_text(json.dumps(loaded))
    (root / "sys/kernel/kexec_crash_loaded").write_text("1\n")


def _state(root: Path) -> tuple[str, list[str]]:
    status = json.loads(_kdumpctl(root, "status", "--json").stdout)
    return status["state"], [reason["code"] for reason in status["reasons"]]


def test_a_broken_image_fails_and_a_good_one_delivers(root: Path, scratch: Path) -> None:
    (folder,) = (path for path in (root / "var/lib/kdumpd").iterdir() if path.is_dir())
    undo = _break(folder)
    done = _kdumpctl(root, "rehearse")
    shutil.copy(root / "var/lib/kdumpd/rehearsal.log", scratch / "broken.log")
    assert done.returncode == 1
    assert "No good dump came of the rehearsal: the capture failed: " in done.stderr
    assert "not a capture configuration" in done.stderr
    _load(root, folder.name)
    state, codes = _state(root)
    assert (state, "rehearsal-failed" in codes) == ("loaded", True)

    (root / "sys/kernel/kexec_crash_loaded").write_text("0\n")
    undo()
    done = _kdumpctl(root, "rehearse", "--json")
    shutil.copy(root / "var/lib/kdumpd/rehearsal.log", scratch / "good.log")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["outcome"] == "complete"
    assert said["exchanged"] == "the disk, one of QEMU on NVMe"
    assert said["dump_bytes"] > 1 << 20
    assert 16 << 20 < said["lowest_available_bytes"] < 192 << 20
    assert "SAVED /var/crash/" in (scratch / "good.log").read_text()
    _load(root, folder.name)
    state, codes = _state(root)
    assert (state, "rehearsal-failed" in codes) == ("rehearsed", False)
    assert not list(Path("/var/tmp").glob("kdumpd-rehearsal-*"))

    # The same image on another command line was not tried.
    loaded = root / "run/kdumpd/loaded.json"
    loaded.write_text(loaded.read_text().replace("nr_cpus=1", "nr_cpus=2"))
    assert _state(root)[0] != "rehearsed"


@pytest.mark.matrix
def test_what_the_scratch_machine_cannot_have_is_exchanged(scratch: Path) -> None:
    """A disk that is named by its path: other settings lie behind the image, and the record says so."""
    root = _with_image(scratch / "root", named=False)
    done = _kdumpctl(root, "rehearse", "--json")
    shutil.copy(root / "var/lib/kdumpd/rehearsal.log", scratch / "exchanged.log")
    assert done.returncode == 0, done.stderr
    exchanged = json.loads(done.stdout)["exchanged"]
    assert "the target /var/crash on /dev/nvme0n1 (ext4), a scratch ext4 filesystem here" in exchanged
    assert "as it is named by its path" in exchanged
    assert "SAVED /crash/" in (scratch / "exchanged.log").read_text()
