# SPDX-License-Identifier: GPL-2.0-or-later
"""Whose files an image is made of: this machine's, or those of a sysroot, the root filesystem of another machine.

Paths are those of that machine. In a sysroot symbolic links are followed as that machine would, so that none leads to
a file of this one; its Python runs through QEMU's emulation of single programs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import shlex
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from kdumpd.errors import BuildError, TargetError
from kdumpd.host.mounts import real_path

PYTHON = "/usr/bin/python3"
_HERE = Path("/")
_LIBRARY_FOLDERS = ("/usr/lib", "/lib", "/usr/lib64", "/lib64")
# Where Debian keeps what its alternatives choose from; an unpacked sysroot has no alternatives yet.
_CHOICES = ("blas", "lapack", "openblas*")
# Names of applets as busybox keeps them: sorted, each ended by one NUL (applet_names in include/applet_tables.h).
_NAMES = re.compile(rb"(?:[a-z0-9_\[][a-z0-9_.\[-]{0,30}\0){20,}")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """`root` is the sysroot, "/" for this machine."""

    root: Path = _HERE

    @property
    def is_here(self) -> bool:
        """True for this machine's own files."""
        return self.root == _HERE

    def real(self, path: str) -> str:
        """`path` without symbolic links, as that machine sees it. Raises BuildError when links go in circles."""
        if self.is_here:
            return os.path.realpath(path)
        try:
            return real_path(path, self.root)
        except TargetError as error:
            raise BuildError(f"{path} in {self.root} is a symbolic link that goes round in circles") from error

    def place(self, path: str) -> str:
        """Where the file lies on this machine."""
        return path if self.is_here else f"{self.root}{self.real(path)}"

    def is_file(self, path: str) -> bool:
        """Whether there is such a file."""
        return os.path.isfile(self.place(path))

    def library_folders(self) -> tuple[str, ...]:
        """The folders that a sysroot's loader looks in, as far as they can be told without running it."""
        found: dict[str, None] = {}
        for folder in _LIBRARY_FOLDERS:
            here = Path(self.place(folder))
            found.update(dict.fromkeys(f"{folder}/{path.name}" for path in sorted(here.glob("*-linux-*"))))
            if here.is_dir():
                found[folder] = None
        for file in (
            Path(self.place("/etc/ld.so.conf")),
            *sorted(Path(self.place("/etc/ld.so.conf.d")).glob("*.conf")),
        ):
            with contextlib.suppress(OSError, UnicodeDecodeError):
                lines = (line.strip() for line in file.read_text().splitlines())
                found.update(dict.fromkeys(line for line in lines if line.startswith("/")))
        return tuple(folder for folder in found if os.path.isdir(self.place(folder)))

    @contextlib.contextmanager
    def python(self, arch: str) -> Iterator[str]:
        """A program that runs that machine's Python; `arch` as uname -m has it. Byte code that is missing there may be
        written to the program's folder. Raises BuildError without a Python.
        """
        if not self.is_file(PYTHON):
            raise BuildError(f"there is no {PYTHON} in {self.root}", hint="install python3 there")
        if self.is_here:
            yield PYTHON
            return
        emulator = next(filter(None, map(shutil.which, (f"qemu-{arch}", f"qemu-{arch}-static"))), None)
        if emulator is None:
            raise BuildError(
                f"the Python in {self.root} cannot be run here: qemu-{arch} is not installed",
                hint="install qemu-user or qemu-user-static",
            )
        # The path it is called by tells Python where its library is. The emulator takes files below -L first; what it
        # took from elsewhere is found out by `inside`.
        words = [emulator, "-L", str(self.root), "-0", PYTHON, "-E", f"LD_LIBRARY_PATH={self._search_path()}"]
        with tempfile.TemporaryDirectory(prefix="kdumpd-python-") as folder:
            program = Path(folder) / "python3"
            words.append(self.place(PYTHON))
            if not any(Path(self.place("/usr/lib")).glob("python3.*/__pycache__/os.*.pyc")):
                # Packages that were unpacked but not configured: emulated, compiling twice would take most of the time.
                words += ["-X", f"pycache_prefix={folder}"]
            program.write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n')
            program.chmod(0o700)
            yield str(program)

    def _search_path(self) -> str:
        folders = self.library_folders()
        chosen = [
            f"{folder}/{path.name}"
            for folder in folders
            for choice in _CHOICES
            for path in sorted(Path(self.place(folder)).glob(choice))
            if path.is_dir()
        ]
        return ":".join([*chosen, *folders])

    def inside(self, path: str) -> str:
        """The machine's path of a file that its Python says it used. Raises BuildError for one of this machine."""
        if self.is_here:
            return path
        root = f"{self.root}/"
        own = path.removeprefix(str(self.root)) if path.startswith(root) else path
        if not self.is_file(own):
            raise BuildError(
                f"the Python in {self.root} took {path} from this machine, which has no place in the image",
                hint=f"install in {self.root} what python3-numpy and python3-zstandard hold",
            )
        return own


def applets(busybox: bytes) -> list[str]:
    """The applets of a busybox that cannot be run here: the longest sorted row of names in it."""
    best: list[bytes] = []
    for found in _NAMES.finditer(busybox):
        row: list[bytes] = []
        for name in found[0].split(b"\0")[:-1]:
            if row and name <= row[-1]:
                row = []
            row.append(name)
            if len(row) > len(best):
                best = row.copy()
    return [name.decode() for name in best]
