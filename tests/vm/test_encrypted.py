# SPDX-License-Identifier: GPL-2.0-or-later
"""A machine whose dump is encrypted: the disk gives nothing, the private key gives everything."""

from __future__ import annotations

import json
import mmap
import subprocess
from pathlib import Path

from lab import image, proof, tiny, vmcore
from lab.aptroot import run

TOP = Path(__file__).resolve().parents[2]


def test_a_stolen_disk_gives_nothing(scratch: Path) -> None:
    key = scratch / "key.txt"
    run(["age-keygen", "-o", str(key)], timeout=10)
    public = subprocess.run(["age-keygen", "-y", key], capture_output=True, text=True, check=True).stdout.strip()
    disk = scratch / "dumps.raw"
    uuid = tiny.ext4(disk)
    config = f"ext4 UUID={uuid}\npath /crash\nencrypt_to {public}\n"
    outcome = tiny.crash(config, scratch, disks=[tiny.Disk(path=disk)])
    assert "/vmcore.age: " in outcome.capture

    # Every byte of the disk: also what was deleted, or only lay there for a while.
    with disk.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as whole:
        for words in (outcome.marker, proof.PANIC, "Linux version", "KDUMP   ", "init_task", "VMCOREINFO"):
            assert whole.find(words.encode()) < 0, f"{words!r} is on the disk"
        assert whole.find(public.encode()) >= 0

    folder = tiny.take_ext4(disk, "/crash", scratch / "crash")
    names = {path.name for path in folder.iterdir()}
    assert {"manifest.json", "manifest.json.age", "vmcore.age", "vmcore-dmesg.txt.age"} <= names
    manifest = json.loads((folder / "manifest.json").read_text())
    assert (manifest["result"], manifest["panic"]) == ("complete", None)
    assert manifest["pages"]["verified"] >= 64
    print(
        f"peak {manifest['peak_rss_bytes']}, available {manifest['lowest_available_bytes']}, {manifest['timings_sec']}"
    )

    log = subprocess.run(["age", "-d", "-i", key, folder / "vmcore-dmesg.txt.age"], capture_output=True, check=True)
    assert outcome.marker.encode() in log.stdout
    clear = scratch / "clear"
    command = ["/usr/bin/python3", "-m", "kdumpd.cli", "decrypt", str(folder), "-i", str(key), "-o", str(clear)]
    done = subprocess.run(command, cwd=TOP, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    proof.marker(clear, outcome.marker)
    proof.accepted(clear)
    proof.opens(clear, vmcore.debug_symbols(image.base().release("6.1")), outcome.marker, ("init", "kthreadd"))
