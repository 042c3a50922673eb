# SPDX-License-Identifier: GPL-2.0-or-later
"""Dumps to an encrypted volume, with a kernel that hands its key over (CONFIG_CRASH_DM_CRYPT), which no Debian has."""

from __future__ import annotations

import mmap
import os
import subprocess
import uuid
from pathlib import Path

import pytest
from lab import circle, image, luks, own_kernel, proof, tiny
from lab.qemu import Machine

pytestmark = pytest.mark.matrix

UUID = "af0405db-8e38-4a1c-a4b7-1a88dbb2f72b"
FILESYSTEM = "6b64756d-7064-4c41-8000-6c756b73766f"
KEYS = "/sys/kernel/config/crash_dm_crypt_keys"


def _volume(scratch: Path, stack: str) -> luks.Luks:
    plain = scratch / "plain.raw"
    with plain.open("wb") as file:
        file.truncate(192 << 20)
    if stack == "lvm":  # which the guest makes
        return luks.make(scratch / "luks.raw", UUID, os.urandom(64), plain)
    # Blocks as large as the sectors that are encrypted as one.
    words = ["-t", "ext4", "-m", "0", "-b", str(luks.SECTOR_BYTES), "-U", FILESYSTEM]
    subprocess.run(["mke2fs", "-q", "-F", *words, str(plain)], check=True)
    return luks.make(scratch / "luks.raw", UUID, os.urandom(64), plain)


def _filesystem(disk: Path) -> int:
    """Where it begins: the superblock lies 1024 bytes behind, its UUID 104 bytes further (ext4's layout)."""
    with disk.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as whole:
        return whole.find(uuid.UUID(FILESYSTEM).bytes) - 1024 - 104


def _shell(guest: Machine, line: str) -> str:
    return guest.run(["/bin/sh", "-c", line], timeout=120).ok()


@pytest.mark.parametrize("stack", ["plain", "lvm"])
def test_a_dump_to_an_encrypted_volume(made: image.Image, scratch: Path, stack: str) -> None:
    """Without the key in the keyring it is refused; the command that is told mends it; then the machine crashes, and
    the dump is on the volume. The key is in nothing that is kept outside.

    "lvm" is what installers make: the encrypted volume holds a volume group, which holds the filesystem.
    """
    kernel = own_kernel.own_kernel("DM_CRYPT", "CRASH_DM_CRYPT", "CRASH_DM_CRYPT_CONFIGS")
    volume = _volume(scratch, stack)
    if stack == "lvm":
        made = image.with_debian(["lvm2"], made)
    disk = luks.machine_disk(made, kernel, f"ext4 UUID={FILESYSTEM}\npath /crash\n", scratch)
    with Machine(
        kernel=kernel.image,
        disks=[(disk, "raw"), (volume.path, "raw")],
        append=f"root=/dev/nvme0n1 ro console=ttyS0 {circle.CRASHKERNEL}",
        memory_mib=1024,
        log=scratch / "console.log",
        restarts=False,
    ) as guest:
        guest.wait_ready(300)
        guest.write("/run/passphrase", luks.PASSPHRASE)
        _shell(guest, "cryptsetup open --key-file /run/passphrase /dev/nvme1n1 dumps")
        if stack == "lvm":
            _shell(
                guest,
                f"""set -e; pvcreate -q /dev/mapper/dumps; vgcreate -q lab-group /dev/mapper/dumps
lvcreate -q -Wn -l 100%FREE -n dumps lab-group; mke2fs -q -m 0 -U {FILESYSTEM} /dev/lab-group/dumps""",
            )
            guest.run(["kdumpctl", "rebuild"])  # nobody told the service of a target that it takes for absent
        said = circle.wait_said(guest, "not in root's keyring", 300)
        assert "target-locked-in-capture" in str(circle.status(guest))
        assert said.rc == 3
        told = circle.flat(said.out).partition("; or at once: ")[2]
        command = told.partition(f"by-uuid/{UUID}")[0] + f"by-uuid/{UUID}"
        _shell(guest, f"{command} --key-file /run/passphrase")
        circle.wait_armed(guest, 600)

        assert _shell(guest, f"cat {KEYS}/kdumpd-*/description") == f"cryptsetup:{UUID}\n"
        assert _shell(guest, f"cat {KEYS}/count").strip() == "1"
        # Only an image that has keys lets itself be asked.
        _shell(guest, f"echo 0 >{KEYS}/reuse")
        # Kept keys, in root's keyring alone, are what the loader finds: it is not root's shell.
        assert "kdumpd-load-keys@" in _shell(guest, "journalctl -b -o cat --no-pager -u 'kdumpd-load-keys@*' -o short")
        inside = _shell(guest, "cd / && find var/lib/kdumpd -name 'initrd*' -o -name '*.json' | sort")
        print(inside)
        texts = _shell(guest, "cat /var/lib/kdumpd/*/*.json /run/kdumpd/*.json; journalctl -b --no-pager; dmesg")
        assert volume.key.hex() not in texts.lower()
        assert f"cryptsetup:{UUID}" in texts
        marker = circle.mark_log(guest)
        after = guest.console.mark()
        guest.crash()
        circle.wait_captured(guest, after)
        said_there = guest.console.text[after:]
    assert "dmcryptkeys=0x" in said_there
    assert "SAVED /crash/" in said_there
    assert volume.key.hex() not in said_there.lower()

    # Everything that is not encrypted: the root disk with image, record, journal and what was deleted.
    with disk.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as whole:
        for key in (volume.key, volume.key[:32], volume.key[32:], volume.key.hex().encode()):
            assert whole.find(key) < 0, "the key is on the root disk"
    plain = volume.decrypted(scratch / "dumps.raw")
    folder = tiny.take_ext4(plain, "/crash", scratch / "crash", offset=_filesystem(plain))
    proof.complete(folder)
    proof.marker(folder, marker)
    proof.verified(folder)
    proof.accepted(folder)
    for path in folder.iterdir():
        if path.name != "vmcore":  # which holds the crashed kernel, and so its key
            assert volume.key.hex() not in path.read_text(errors="replace").lower()
