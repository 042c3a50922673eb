# SPDX-License-Identifier: GPL-2.0-or-later
"""What goes into the capture image: the tree of entries, each with the host's file it was made of.

Puts together what `pyclosure`, `elf` and `kmodules` find. Neither packs nor writes anything.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import stat
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from kdumpd.config.capture import CaptureConfig
from kdumpd.errors import BuildError, os_reason
from kdumpd.image import bytecode, elf, firmware, kmodules, pyclosure, supervisor
from kdumpd.image.cpio import Entry
from kdumpd.image.origin import Origin
from kdumpd.image.record import EARLY_PATH, IMAGE_PACKAGE, MODULES_PATH, FileRecord, Source

# The shell and its tools, for init, whatever other tools an image has.
TOOLS = "kdumpd/bin"
BUSYBOX_PLACES = ("/usr/bin/busybox", "/bin/busybox")
# What depends on the kernel lies outside of /usr, so that an image for another kernel can have the same /usr; and init
# removes each module there once it is loaded.
MODULES = "kdumpd/modules"
FIRMWARE = "kdumpd/firmware"
# What init and the collector call; `applets` checks that this busybox has them.
APPLETS = (
    *("cat", "date", "dd", "dmesg", "env", "findfs", "halt", "insmod", "kill", "ls", "mkdir", "mount", "mv", "od"),
    *("poweroff", "ps", "reboot", "rm", "setsid", "sh", "sleep", "stat", "sync", "touch", "tr", "umount"),
)
_HERE = Origin()

_FOLDERS = ("dev", "etc/kdumpd", MODULES, "proc", "root", "run", "sys", "tmp", "mnt")
# Distributions merged these into /usr; the image is built merged, wherever the host's files lie.
_IN_BASE = frozenset({".", "etc", "etc/kdumpd", "kdumpd", MODULES, FIRMWARE})
_MERGED = {"bin": "usr/bin", "sbin": "usr/sbin", "lib": "usr/lib", "lib64": "usr/lib64", "lib32": "usr/lib32"}


@dataclasses.dataclass(slots=True)
class Tree:
    """Entries by path, with their sources. Adding the same path again with other content is an error.

    `notes` are sentences for whoever builds the image. `early` are the files below /usr that are needed before it is
    mounted, where it comes as a squashfs. `verbatim` are the files that are what their sources are.
    """

    entries: dict[str, Entry] = dataclasses.field(default_factory=dict)
    sources: dict[str, Source] = dataclasses.field(default_factory=dict)
    notes: list[str] = dataclasses.field(default_factory=list)
    early: set[str] = dataclasses.field(default_factory=set)
    verbatim: set[str] = dataclasses.field(default_factory=set)

    def add(self, entry: Entry, source: Source | None = None) -> None:
        """Adds an entry and the folders above it."""
        known = self.entries.get(entry.path)
        if known is not None and known != entry:
            raise BuildError(f"two different files would be /{entry.path} in the capture image")
        parent = str(PurePosixPath(entry.path).parent)
        if parent != "." and parent not in self.entries:
            self.add(Entry(path=parent, mode=stat.S_IFDIR | 0o755))
        self.entries[entry.path] = entry
        if source is not None:
            self.sources[entry.path] = source

    def add_file(self, path: str, source: str, content: bytes | None = None) -> None:
        """Adds the host's file `source`, or `content` made of it, at `path` (absolute or not)."""
        data, facts = read_source(source)
        executable = os.access(source, os.X_OK) and content is None
        mode = stat.S_IFREG | (0o755 if executable else 0o644)
        place = merged(path)
        self.add(Entry(path=place, mode=mode, content=data if content is None else content), facts)
        (self.verbatim.add if content is None else self.verbatim.discard)(place)

    def add_text(self, path: str, text: str) -> None:
        """Adds a file that was written for this image."""
        self.add(Entry(path=path, mode=stat.S_IFREG | 0o600, content=text.encode()))

    def add_link(self, path: str, target: str) -> None:
        """Adds a symbolic link."""
        self.add(Entry(path=path, mode=stat.S_IFLNK | 0o777, content=target.encode()))

    def records(self) -> tuple[FileRecord, ...]:
        """The record of every entry, sorted by path."""
        return tuple(
            record_of(entry, self.sources.get(path), verbatim=path in self.verbatim)
            for path, entry in sorted(self.entries.items())
        )


class Overlay(Tree):
    """Settings alone, or what depends on the kernel alone: the folders they lie in are in the base."""

    __slots__ = ()

    def add(self, entry: Entry, source: Source | None = None) -> None:
        """Adds a file, and folders below those of the base."""
        parent = str(PurePosixPath(entry.path).parent)
        if parent not in _IN_BASE and parent not in self.entries:
            self.add(Entry(path=parent, mode=stat.S_IFDIR | 0o755))
        self.entries[entry.path] = entry
        if source is not None:
            self.sources[entry.path] = source


def record_of(entry: Entry, source: Source | None = None, *, verbatim: bool = False) -> FileRecord:
    """What a record says of an entry; a device node's content is its number. A `verbatim` one has its source's sum."""
    if verbatim and source is not None:
        return FileRecord(
            path=entry.path, mode=entry.mode, size=len(entry.content), sha256=source.sha256, source=source
        )
    content = entry.content if not stat.S_ISCHR(entry.mode) else "{}:{}".format(*entry.device).encode()
    digest = hashlib.sha256(content).hexdigest()
    return FileRecord(path=entry.path, mode=entry.mode, size=len(entry.content), sha256=digest, source=source)


def read_source(path: str) -> tuple[bytes, Source]:
    """A file of the host and the facts to find out later whether it changed. Raises BuildError."""
    try:
        with open(path, "rb") as stream:
            status = os.fstat(stream.fileno())
            data = stream.read()
    except OSError as error:
        raise BuildError(
            f"{path}, which the capture image needs, cannot be read: {os_reason(error)}", hint=f"ls -l {path}"
        ) from error
    digest = hashlib.sha256(data).hexdigest()
    return data, Source(
        path=path, size=status.st_size, mtime_ns=status.st_mtime_ns, ctime_ns=status.st_ctime_ns, sha256=digest
    )


def merged(path: str) -> str:
    """`path` without its leading slash, with /lib, /bin and the like in their places below /usr."""
    first, separator, rest = path.lstrip("/").partition("/")
    return f"{_MERGED[first]}/{rest}" if separator and first in _MERGED else path.lstrip("/")


def skeleton(init: Path, place: str) -> Tree:
    """Folders, links, the console and, at `place`, the script that runs the capture.

    Where that is `init`, the image is all our own: then firmware lies in FIRMWARE, and the kernel finds it there.
    """
    tree = Tree()
    for folder in (*_FOLDERS, *_MERGED.values()):
        tree.add(Entry(path=folder, mode=stat.S_IFDIR | 0o755))
    for name, target in _MERGED.items():
        tree.add_link(name, target)
    if place == "init":
        tree.add(Entry(path=FIRMWARE, mode=stat.S_IFDIR | 0o755))
        tree.add_link("usr/lib/firmware", f"/{FIRMWARE}")
        tree.early.add("usr/lib/firmware")
    # The kernel opens it for init before anything is mounted.
    tree.add(Entry(path="dev/console", mode=stat.S_IFCHR | 0o600, device=(5, 1)))
    data, facts = read_source(str(init))
    tree.add(Entry(path=place, mode=stat.S_IFREG | 0o755, content=data), facts)
    return tree


def settings(capture: CaptureConfig, modules: Sequence[str]) -> Tree:
    """What the capture kernel is told, without the folders above; `modules` are places in the image, to be loaded."""
    tree = Overlay()
    tree.add_text("etc/kdumpd/capture.json", capture.to_json())
    for path, text in supervisor.supervisor_files(capture).items():
        tree.add_text(path, text)
    tree.add_text(MODULES_PATH, "".join(f"{path}\n" for path in modules))
    return tree


def find_busybox(user: str) -> str:
    """Where this machine has busybox, which `user` needs. Raises BuildError."""
    found = next((place for place in BUSYBOX_PLACES if os.path.exists(place)), None)
    if found is None:
        raise BuildError(f"busybox, which {user} needs, is not installed", hint="install busybox-static")
    return found


def add_busybox(tree: Tree, listed: Sequence[str], busybox: str, origin: Origin = _HERE) -> list[str]:
    """The shell and its tools; returns the ELF files added. Raises BuildError when an applet is missing."""
    missing = [name for name in APPLETS if name not in listed]
    if missing:
        raise BuildError(
            f"{busybox} lacks {', '.join(missing)}, which the capture image needs",
            hint="install busybox-static or busybox of the distribution",
        )
    tree.add_file(f"{TOOLS}/busybox", origin.place(busybox))
    for name in APPLETS:
        tree.add_link(f"{TOOLS}/{name}", "busybox")
        tree.add_link(f"usr/bin/{name}", f"/{TOOLS}/busybox")
    # Scripts begin with #!/bin/sh, init too; a busybox that is not static needs its libraries.
    libraries = (merged(library.target) for library in elf.find_libraries([busybox], origin=origin))
    tree.early.update(("usr/bin/sh", *libraries))
    return [busybox]


def add_python(
    tree: Tree, closure: pyclosure.PythonClosure, package_dir: Path, interpreter: str, origin: Origin = _HERE
) -> list[str]:
    """The interpreter, its byte code and extension modules, kdumpd; returns the ELF files added."""
    tree.notes.extend(closure.notes)
    executable = Path(origin.real(str(closure.executable)))
    tree.add_file(f"usr/bin/{executable.name}", origin.place(str(executable)))
    if executable.name != "python3":
        tree.add_link("usr/bin/python3", executable.name)
    own = {str(path): f"{IMAGE_PACKAGE}/{path.relative_to(package_dir)}" for path in closure.own}
    shown = {path: f"/{place}" for path, place in own.items() if path.endswith(".py")}
    stand_in = str(pyclosure.LEFT_OUT)
    compiled = bytecode.compiled(closure, {**shown, stand_in: stand_in}, interpreter, origin)
    left_out = compiled.pop(stand_in)
    for path in closure.left_out:
        tree.add_file(f"{path.removesuffix('.py')}.pyc", stand_in, left_out)
    for path, code in compiled.items():
        place = own.get(path)
        source = path if place is not None else origin.place(path)
        tree.add_file(f"{(place or path).removesuffix('.py')}.pyc", source, code)
    for path, place in own.items():
        if not path.endswith(".py"):
            tree.add_file(place, path)
    for path in closure.extensions:
        tree.add_file(path, origin.place(path))
    return [str(executable), *closure.extensions]


def add_libraries(tree: Tree, paths: Sequence[str], mapped: Sequence[str], origin: Origin = _HERE) -> None:
    """The libraries the ELF files need, and those the collector opened by name (seen in its memory map)."""
    libraries = elf.find_libraries(paths, origin=origin)
    for library in libraries:
        tree.add_file(library.target, origin.place(library.source))
    # An alternative (libblas) may be mapped from another place than the one chosen: compare by soname.
    names = {os.path.basename(library.target) for library in libraries}
    known = {origin.real(path) for path in (*paths, *(library.source for library in libraries))}
    opened = [path for path in mapped if origin.real(path) not in known and origin.is_file(path)]
    for path in opened:
        facts = elf.parse_elf(Path(origin.place(path)).read_bytes(), path)
        # What is only ever opened by its path (a provider of OpenSSL) has no soname.
        if facts is not None and facts.soname not in names:
            for library in elf.find_libraries([path], origin=origin):
                tree.add_file(library.target, origin.place(library.source))
            # Opened by its soname, which was a link; where something else needs it, it has that name, too.
            folder, name = os.path.split(path)
            soname = facts.soname or name
            tree.add_file(f"{folder}/{soname}", origin.place(path))
            if soname != name:
                tree.add_link(merged(path), soname)


def module_place(release: str, path: str) -> str:
    """Where in the image a module lies; `path` is relative to the folder of modules."""
    return f"/{MODULES}/{release}/{path.partition('.ko')[0]}.ko"


def add_modules(
    tree: Tree,
    index: kmodules.ModuleIndex,
    release: str,
    paths: Sequence[str],
    root: Path = Path("/"),
    place: str = FIRMWARE,
) -> None:
    """The kernel modules at `paths`, with the firmware that they name in the folder `place`."""
    for path in paths:
        source = index.folder / path
        data = kmodules.read_module(source)
        tree.add_file(module_place(release, path), str(source), data)
        _add_firmware(tree, kmodules.module_name(path), firmware.firmware_names(data), release, root, place)


def add_early_modules(tree: Tree, index: kmodules.ModuleIndex, release: str, paths: Sequence[str]) -> None:
    """The modules that mount the squashfs, and the list of them."""
    add_modules(tree, index, release, paths)
    tree.add_text(EARLY_PATH, "".join(f"{module_place(release, path)}\n" for path in paths))


def _add_firmware(tree: Tree, module: str, names: Sequence[str], release: str, root: Path, place: str) -> None:
    missing = []
    for name in names:
        found = firmware.find_firmware(name, release, root)
        if found is None:
            missing.append(name)
        else:
            tree.add_file(f"{place}/{name}", str(found), firmware.read_firmware(found))
    if missing:
        tree.notes.append(firmware.missing_note(module, missing))
