# SPDX-License-Identifier: GPL-2.0-or-later
"""The archives of a rehearsal: the first system, which loads and crashes, and what goes behind the image under trial.

The first system holds busybox, Python and kdumpd's own loader, each the machine's; it is no copy of the image, so that
an image that is broken cannot help itself. The image stays as it is: the kernel unpacks an archive that lies behind it
after it (Documentation/driver-api/early-userspace/buffer-format.rst), and the files in that one win.
"""

from __future__ import annotations

import dataclasses
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path

from kdumpd.errors import BuildError
from kdumpd.image import contents, cpio, kmodules, pack, pyclosure
from kdumpd.image.board_folder import program_sources
from kdumpd.image.builder import applets_of
from kdumpd.image.capture import find_shared
from kdumpd.image.cpio import Entry
from kdumpd.image.kmodules import ModuleIndex
from kdumpd.image.record import MODULES_PATH
from kdumpd.rehearsal.scratch import Stage

LOADER = "kdumpd.loader.board"
_FOLDER = "rehearsal"
_BESIDE = "kdumpd/rehearsal"  # in the capture image; /usr is mounted over there
_BLOCK = 512


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """What is rehearsed, as bytes: nobody exchanges a file meanwhile. `modules` are places in the image."""

    release: str
    kernel: bytes
    initrd: bytes
    cmdline: str
    modules: tuple[str, ...]


def behind_image(pair: Pair, stage: Stage, index: ModuleIndex) -> bytes:
    """The archive to put behind the image: drivers that it lacks here, settings where its own cannot hold."""
    tree = contents.Tree()
    places = list(pair.modules)
    for path in stage.added:
        place = f"{_BESIDE}/{kmodules.module_name(path)}.ko"
        tree.add(_file(place, kmodules.read_module(index.folder / path)))
        places.append(f"/{place}")
    if stage.capture is not None:
        entries = contents.settings(stage.capture, places).entries
    else:
        text = "".join(f"{place}\n" for place in places)
        entries = {MODULES_PATH: _file(MODULES_PATH, text.encode())}
    for entry in entries.values():
        tree.add(entry)
    return bytes(-len(pair.initrd) % _BLOCK) + cpio.write(tree.entries.values())


def first_system(
    pair: Pair, stage: Stage, index: ModuleIndex, settings: Mapping[str, object], config: dict[str, str] | None
) -> bytes:
    """The initramfs of the scratch machine. `settings` are for its init. Raises BuildError."""
    tree = contents.skeleton(find_shared("rehearsal/init"), "init")
    busybox = contents.find_busybox("the rehearsal")
    applets = applets_of(busybox)
    if "tar" not in applets:
        raise BuildError(f"{busybox} has no tar, which the rehearsal needs", hint="install busybox-static")
    elfs = contents.add_busybox(tree, applets, busybox)
    closure = pyclosure.find_program(LOADER, tuple(program_sources(LOADER).values()))
    elfs += contents.add_python(tree, closure, pyclosure.PACKAGE_DIR, pyclosure.INTERPRETER)
    contents.add_libraries(tree, elfs, closure.mapped)
    places = []
    for path in stage.modules:
        place = f"{_FOLDER}/{kmodules.module_name(path)}.ko"
        tree.add(_file(place, kmodules.read_module(index.folder / path)))
        places.append(f"/{place}")
    texts = {"modules": _lines(places), "settings": _lines(f"{key} {value}" for key, value in settings.items())}
    texts["cmdline"] = f"{pair.cmdline}\n"
    for name, text in texts.items():
        tree.add(_file(f"{_FOLDER}/{name}", text.encode()))
    # Packed images do not pack again: the machine would only unpack them a second time.
    large = [
        _file(f"{_FOLDER}/kernel", pair.kernel),
        _file(f"{_FOLDER}/initrd", pair.initrd + behind_image(pair, stage, index)),
    ]
    packed = pack.pack(cpio.write(tree.entries.values()), pack.choose(config))
    return packed + bytes(-len(packed) % _BLOCK) + cpio.write(large)


def read_bytes(path: Path, what: str) -> bytes:
    """A file. Raises BuildError."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise BuildError(f"the {what} {path} cannot be read: {error.strerror}", hint="kdumpctl rebuild") from error


def _lines(lines: Iterable[str]) -> str:
    return "".join(f"{line}\n" for line in lines)


def _file(path: str, content: bytes) -> Entry:
    return Entry(path=path, mode=stat.S_IFREG | 0o600, content=content)
