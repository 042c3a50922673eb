# SPDX-License-Identifier: GPL-2.0-or-later
"""Shared libraries: what an ELF file needs, where the host's loader finds it, where the image's loader will.

The image has no ld.so.cache, so a library found through the cache is put where the loader looks anyway: beside
libc. A library found through a file's own RUNPATH keeps its place.
"""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path

from kdumpd.errors import BuildError, os_reason
from kdumpd.image.elf_file import ElfFacts, parse_elf
from kdumpd.image.origin import Origin

# Opened by name at run time, so that no file says it needs it: glibc, to end a thread.
DLOPENED = ("libgcc_s.so.1",)
# libblas.so.3 is an alternative. OpenBLAS is 30 MB and wants a thread per processor; where the plain one is
# installed too, the capture kernel gets that.
_PLAIN_FOLDERS = {"libblas.so.3": "blas", "liblapack.so.3": "lapack"}
_CACHE_LINE = re.compile(r"^\s+(?P<soname>\S+) \((?P<flags>[^)]*)\) => (?P<path>/.*)$")
_DEFAULT_DIRS = ("/lib", "/usr/lib", "/lib64", "/usr/lib64")
_HERE = Origin()

__all__ = ("ElfFacts", "Library", "find_libraries", "parse_elf", "parse_ldconfig", "read_ld_cache", "runpath_dirs")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Library:
    """A library: the path it was found at, and its path in the image (absolute)."""

    source: str
    target: str


def parse_ldconfig(text: str) -> dict[str, tuple[str, ...]]:
    """Soname -> paths, from `ldconfig -p`. Variants for newer processors (hwcap) are left out."""
    found: dict[str, tuple[str, ...]] = {}
    for line in text.splitlines():
        match = _CACHE_LINE.match(line)
        if match and "hwcap" not in match["flags"]:
            found[match["soname"]] = (*found.get(match["soname"], ()), match["path"])
    return found


def read_ld_cache() -> dict[str, tuple[str, ...]]:
    """The loader's cache. Empty when ldconfig is missing: then only the default folders count."""
    for program in ("/usr/sbin/ldconfig", "/sbin/ldconfig"):
        if os.path.exists(program):
            done = subprocess.run([program, "-p"], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
            return parse_ldconfig(done.stdout)
    return {}


def runpath_dirs(facts: ElfFacts, path: str) -> tuple[str, ...]:
    """The folders of a file's RUNPATH, with $ORIGIN filled in for a file at `path`."""
    origin = os.path.dirname(path)
    filled = (part.replace("${ORIGIN}", origin).replace("$ORIGIN", origin) for part in facts.runpath if part)
    return tuple(os.path.normpath(part) for part in filled if part.startswith("/"))


def find_libraries(
    paths: Iterable[str], read: Callable[[str], bytes] | None = None, origin: Origin = _HERE
) -> tuple[Library, ...]:
    """All libraries that the ELF files `paths` need, with the loader, sorted by their place in the image.

    Paths are those of `origin`. Raises BuildError naming a library that is missing and the file that needs it.
    """
    search = _Search(read or (lambda path: Path(origin.place(path)).read_bytes()), origin)
    for path in paths:
        search.add(path)
    search.finish()
    return tuple(sorted(search.found.values(), key=lambda library: library.target))


class _Search:
    def __init__(self, read: Callable[[str], bytes], origin: Origin) -> None:
        self._read = read
        self._origin = origin
        self._cache = read_ld_cache() if origin.is_here else {}
        self._folders = _DEFAULT_DIRS if origin.is_here else origin.library_folders()
        self._machine: tuple[str, int] | None = None
        self._pending: list[str] = []
        self._seen: set[str] = set()
        self._facts: dict[str, ElfFacts | None] = {}
        self._libc: str | None = None
        self.found: dict[str, Library] = {}

    def add(self, path: str) -> None:
        self._pending.append(path)

    def finish(self) -> None:
        self._drain()
        if "libc.so.6" in self.found:
            for soname in DLOPENED:
                self._resolve(soname, "the C library", ())
            self._drain()

    def _drain(self) -> None:
        while self._pending:
            path = self._pending.pop()
            if path in self._seen:
                continue
            self._seen.add(path)
            facts = self._facts_of(path)
            if facts is None:
                continue
            self._machine = self._machine or facts.machine
            if facts.interpreter is not None:
                self._take(os.path.basename(facts.interpreter), facts.interpreter, facts.interpreter)
            for soname in facts.needed:
                self._resolve(soname, path, runpath_dirs(facts, path))

    def _resolve(self, soname: str, needed_by: str, own_dirs: tuple[str, ...]) -> None:
        if soname in self.found:
            return
        for folder in own_dirs:
            if self._fits(path := f"{folder}/{soname}"):
                self._take(soname, path, path)
                return
        for path in self._candidates(soname):
            if self._fits(path):
                self._take(soname, path, f"{self._libc_dir()}/{soname}")
                return
        raise BuildError(
            f"the library {soname}, which {needed_by} needs, is not installed",
            hint=f"install the package that holds {soname}",
        )

    def _candidates(self, soname: str) -> list[str]:
        cached = list(self._cache.get(soname, ()))
        plain = _PLAIN_FOLDERS.get(soname)
        if plain is not None:
            folders = [*map(os.path.dirname, cached), *self._folders]
            cached = [f"{folder}/{plain}/{soname}" for folder in folders] + cached
        return cached + [f"{folder}/{soname}" for folder in self._folders]

    def _fits(self, path: str) -> bool:
        if not self._origin.is_file(path):
            return False
        facts = self._facts_of(path)
        return facts is not None and facts.machine == self._machine

    def _facts_of(self, path: str) -> ElfFacts | None:
        if path not in self._facts:
            try:
                data = self._read(path)
            except OSError as error:
                raise BuildError(
                    f"the library or program {path} cannot be read: {os_reason(error)}",
                    hint="install its package again",
                ) from error
            self._facts[path] = parse_elf(data, path)
        return self._facts[path]

    def _libc_dir(self) -> str:
        if self._libc is None:
            fitting = (path for path in self._candidates("libc.so.6") if self._fits(path))
            self._libc = next(fitting, "/usr/lib/libc.so.6")
        return os.path.dirname(self._libc)

    def _take(self, soname: str, source: str, target: str) -> None:
        self.found[soname] = Library(source=source, target=target)
        self._pending.append(source)
