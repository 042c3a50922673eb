# SPDX-License-Identifier: GPL-2.0-or-later
"""Firmware that drivers in the image ask the kernel for: it looks below /lib/firmware, where it is put unpacked.

A module names all files that any of its devices could need (`modinfo -F firmware`), most of which a machine does not
have. What is there is copied; what is not becomes a note, since nobody but the device knows whether it matters.
"""

from __future__ import annotations

import lzma
import re
from collections.abc import Iterable
from pathlib import Path

from kdumpd.errors import BuildError, os_reason
from kdumpd.image.pack import load_zstandard

# drivers/base/firmware_loader/main.c, fw_path[]; a release's own files come first.
_FOLDERS = ("updates/{}", "updates", "{}", "")
_SUFFIXES = ("", ".xz", ".zst")
_NAMED = re.compile(rb"\0firmware=([^\0]{1,255})(?=\0)")


def firmware_names(module: bytes) -> tuple[str, ...]:
    """The names in the section .modinfo of a module, which is text between zeros; those that could lead elsewhere are
    left out."""
    names = (found.decode(errors="replace") for found in _NAMED.findall(module))
    return tuple(dict.fromkeys(name for name in names if name[0] != "/" and ".." not in name.split("/")))


def find_firmware(name: str, release: str, root: Path = Path("/")) -> Path | None:
    """The file that the kernel `release` would read for `name`, packed or not."""
    for folder in _FOLDERS:
        for suffix in _SUFFIXES:
            path = root / "lib/firmware" / folder.format(release) / f"{name}{suffix}"
            if path.is_file():
                return path
    return None


def read_firmware(path: Path) -> bytes:
    """The bytes of a firmware file, unpacked. Raises BuildError."""
    zstandard = load_zstandard()
    try:
        data = path.read_bytes()
        if path.name.endswith(".xz"):
            return lzma.decompress(data)
        if path.name.endswith(".zst"):
            unpacked: bytes = zstandard.ZstdDecompressor().decompressobj().decompress(data)
            return unpacked
        return data
    except OSError as error:
        raise BuildError(f"the firmware {path} cannot be read: {os_reason(error)}") from error
    except (EOFError, lzma.LZMAError, zstandard.ZstdError) as error:
        raise BuildError(f"the firmware {path} is damaged: {error}", hint="install its package again") from error


def missing_note(module: str, names: Iterable[str]) -> str:
    """What is said of firmware that is not on this machine."""
    return f"the driver {module} names firmware that is not on this machine: {', '.join(names)}"
