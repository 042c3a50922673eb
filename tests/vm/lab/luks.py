# SPDX-License-Identifier: GPL-2.0-or-later
"""A LUKS2 volume as a file, made and read without dm-crypt, and a machine that opens it.

The header is cryptsetup's; the data is encrypted and decrypted here, with AES-XTS as the LUKS2 format describes it, so
that what a guest's kernel wrote is judged by somebody else.
"""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
from pathlib import Path
from typing import IO

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from . import image, tools
from .aptroot import run
from .whole import WholeKernel

PASSPHRASE = b"a passphrase"
SECTOR_BYTES = 4096
OFFSET_BYTES = 16 << 20
SUITE = "trixie"  # cryptsetup from 2.7 on puts volume keys into a keyring


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Luks:
    """A volume at `path` with the volume key `key`."""

    path: Path
    uuid: str
    key: bytes

    def decrypted(self, wanted: Path) -> Path:
        """The data behind the header, as the file `wanted`."""
        with self.path.open("rb") as source, wanted.open("wb") as file:
            source.seek(OFFSET_BYTES)
            _crypt(self.key, source, file, encrypt=False)
        return wanted


def make(path: Path, uuid: str, key: bytes, content: Path) -> Luks:
    """Makes `path` a LUKS2 volume with `key` that holds the bytes of `content`."""
    key_file = path.with_suffix(".key")
    key_file.write_bytes(key)
    with path.open("wb") as file:
        file.truncate(OFFSET_BYTES + content.stat().st_size)
    words = [
        "--type",
        "luks2",
        "--pbkdf",
        "pbkdf2",
        "--pbkdf-force-iterations",
        "1000",
        "--sector-size",
        str(SECTOR_BYTES),
    ]
    words += ["--cipher", "aes-xts-plain64", "--key-size", str(8 * len(key)), "--volume-key-file", str(key_file)]
    subprocess.run(
        ["cryptsetup", "-q", "luksFormat", *words, "--uuid", uuid, str(path), "-"],
        input=PASSPHRASE, check=True, capture_output=True, timeout=60,
    )  # fmt: skip
    key_file.unlink()
    with content.open("rb") as source, path.open("r+b") as file:
        file.seek(OFFSET_BYTES)
        _crypt(key, source, file, encrypt=True)
    return Luks(path=path, uuid=uuid, key=key)


def _crypt(key: bytes, source: IO[bytes], file: IO[bytes], *, encrypt: bool) -> None:
    """Sector by sector; the tweak is the number of its first 512 bytes, little-endian (plain64)."""
    at = 0
    while data := source.read(SECTOR_BYTES):
        tweak = (at * SECTOR_BYTES // 512).to_bytes(16, "little")
        cipher = Cipher(algorithms.AES(key), modes.XTS(tweak))
        work = cipher.encryptor() if encrypt else cipher.decryptor()
        file.write(work.update(data) + work.finalize())
        at += 1


def machine_disk(made: image.Image, kernel: WholeKernel, config: str, folder: Path) -> Path:
    """A disk with the files of `made`, with `kernel` as its only one, cryptsetup, and kdump.conf."""
    root = folder / "root"
    run(["cp", "-a", "--reflink=auto", str(made.root), str(root)], timeout=300)
    try:
        for old in [*(root / "boot").iterdir(), *(root / "usr/lib/modules").iterdir()]:
            shutil.rmtree(old) if old.is_dir() else old.unlink()
        shutil.copytree(kernel.modules, root / "usr/lib/modules" / kernel.release)
        for path in (kernel.root / "boot").iterdir():
            shutil.copy(path, root / "boot")
        place = root / "opt/cryptsetup"
        words = tools.copy_program("cryptsetup-bin", "cryptsetup", SUITE, place)
        program = root / "usr/sbin/cryptsetup"
        # No rules of udev for the device mapper are installed, so nobody would answer libdevmapper.
        program.write_text(
            f"#!/bin/sh\nexport DM_DISABLE_UDEV=1\nhere=/opt/cryptsetup\n"
            f'exec $here/{words[0]} --library-path $here $here/{words[-1]} "$@"\n'
        )
        program.chmod(0o755)
        (root / "etc/kdump.conf").write_text(config)
        disk = folder / "disk.raw"
        image.make_disk(root, disk)
    finally:
        shutil.rmtree(root)
    return disk
