# SPDX-License-Identifier: GPL-2.0-or-later
"""What crashkernel= the next boot will have, as far as the boot loader's files tell.

Knows grub.cfg, Boot Loader Specification entries (https://uapi-group.org/specifications/specs/boot_loader_specification/),
extlinux.conf, and the files with one command line. Which of several entries a person or the loader will choose cannot
be known, so the answer is the set of their values. Changes none of these files.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path

from kdumpd.host.cmdline import parse_cmdline, split_words
from kdumpd.host.crashkernel import parse_crashkernel
from kdumpd.host.files import below, read_text

_GRUB = ("/boot/grub/grub.cfg", "/boot/grub2/grub.cfg")
_GRUBENV = ("/boot/grub/grubenv", "/boot/grub2/grubenv")
BOOT_FOLDERS = ("/boot/loader/entries", "/boot/efi/loader/entries", "/efi/loader/entries")
_EXTLINUX = ("/boot/extlinux/extlinux.conf", "/boot/extlinux.conf")
# Firmware of a Raspberry Pi reads the first two; the last is what kernel-install puts into entries and unified kernels.
_LINES = ("/boot/firmware/cmdline.txt", "/boot/cmdline.txt", "/etc/kernel/cmdline")

# Everything that is read here, for who wants to watch it; the entries lie in BOOT_FOLDERS.
BOOT_FILES = (*_GRUB, *_GRUBENV, *_EXTLINUX, *_LINES)

_GRUB_LINUX = re.compile(r"^\s*linux(?:16|efi)?\s+(\S+)\s*(.*)$", re.MULTILINE)
_RESCUE = frozenset({"single", "s", "S", "1", "rescue", "emergency", "recovery", "systemd.unit=rescue.target"})


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class NextBoot:
    """`files` were read; `crashkernels` are the different values in their entries, "" for an entry that has none.

    Both are empty when nothing is known. Rescue entries and those of other systems are left out.
    """

    files: tuple[str, ...] = ()
    crashkernels: tuple[str, ...] = ()


def parse_grub(text: str) -> Iterator[str]:
    """The command lines of the Linux kernels in grub.cfg."""
    for match in _GRUB_LINUX.finditer(text):
        if not match[1].rpartition("/")[2].startswith("memtest"):
            yield match[2]


def parse_entry(text: str, variables: dict[str, str]) -> Iterator[str]:
    """The command line of one Boot Loader Specification entry; `variables` are those of grubenv ($kernelopts)."""
    options = []
    for line in text.splitlines():
        key, _, value = line.strip().partition(" ")
        if key in ("efi", "uki") or (key == "version" and "rescue" in value):
            return
        if key == "options":
            options.append(value.strip())
    words = (word for line in options for word in line.split(" "))
    yield " ".join(variables.get(word[1:], "") if word.startswith("$") else word for word in words)


def parse_extlinux(text: str) -> Iterator[str]:
    """The command lines of extlinux.conf."""
    for line in text.splitlines():
        key, _, value = line.strip().partition(" ")
        if key.lower() == "append":
            yield value


def parse_grubenv(text: str) -> dict[str, str]:
    """The variables of grubenv."""
    lines = (line.partition("=") for line in text.splitlines() if "=" in line and not line.startswith("#"))
    return {name: value for name, _, value in lines}


def crashkernel_words(cmdline: str) -> str:
    """The crashkernel= entries of a command line that count, as one text; empty when there are none."""
    request = parse_crashkernel(cmdline)
    entries = (request.plain, request.high, request.low, request.cma)
    return " crashkernel=".join(entry.text for entry in entries if entry is not None)


def read_next_boot(root: Path, running: str) -> NextBoot:
    """What is configured below `root` for the system that was booted with the command line `running`."""
    files: list[str] = []
    values: dict[str, None] = {}
    system = dict(parse_cmdline(running)).get("root")
    for path, cmdline in _cmdlines(root):
        found = dict(parse_cmdline(cmdline)).get("root")
        if (found and system and found != system) or not _RESCUE.isdisjoint(split_words(cmdline)):
            continue
        files.append(path)
        values.setdefault(crashkernel_words(cmdline))
    return NextBoot(files=tuple(dict.fromkeys(files)), crashkernels=tuple(values))


def _cmdlines(root: Path) -> Iterator[tuple[str, str]]:
    """Path and command line of each entry. The file with one line counts only where no loader has entries."""
    known = False
    for path, cmdline in _loader_cmdlines(root):
        known = True
        yield path, cmdline
    for path in () if known else _LINES:
        text = read_text(root, path)
        if text is not None and text.strip():
            yield path, text.strip()


def _loader_cmdlines(root: Path) -> Iterator[tuple[str, str]]:
    variables: dict[str, str] = {}
    for path in _GRUBENV:
        variables.update(parse_grubenv(read_text(root, path) or ""))
    for path in _GRUB:
        for cmdline in parse_grub(read_text(root, path) or ""):
            yield path, cmdline
    for folder in BOOT_FOLDERS:
        for entry in sorted(_entries(below(root, folder))):
            path = f"{folder}/{entry}"
            for cmdline in parse_entry(read_text(root, path) or "", variables):
                yield path, cmdline
    for path in _EXTLINUX:
        for cmdline in parse_extlinux(read_text(root, path) or ""):
            yield path, cmdline


def _entries(folder: Path) -> list[str]:
    try:
        return [path.name for path in folder.iterdir() if path.suffix == ".conf"]
    except OSError:
        return []  # no such loader, or only root may look
