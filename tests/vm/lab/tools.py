# SPDX-License-Identifier: GPL-2.0-or-later
"""crash, makedumpfile, drgn, libkdumpfile and virtiofsd of a newer Debian, run on this one without installing anything.

Debian 12's makedumpfile knows no zstd, its crash loses the processes of current kernels, and drgn it has none. The
newer programs are unpacked with all their libraries and started through their own libc's loader (ld.so(8)), those of
arm64 through QEMU's emulation of single programs.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from .aptroot import CACHE, KEEPS_OLD_LISTS, AptRoot, LabError, run
from .cached import digest, made_once

# makedumpfile leaves no free page of a 6.12 kernel out before 1.7.7, which trixie does not have yet; crash opens no
# 7.x kernel before 9.
SUITES = {"crash": "trixie", "makedumpfile": "forky", "virtiofsd": "trixie"}
NEWEST = "forky"
READERS = ("python3-drgn", "python3-pykdumpfile")
READING = Path(__file__).parent / "reading"
_PROGRAMS = ("usr/bin", "usr/sbin", "usr/libexec")
_TRIPLETS = {
    "amd64": ("x86_64-linux-gnu", "ld-linux-x86-64.so.2"),
    "arm64": ("aarch64-linux-gnu", "ld-linux-aarch64.so.1"),
}


def program(name: str, *, suite: str | None = None, architecture: str = "amd64") -> list[str]:
    """The words that start `name`, one of SUITES, of a newer Debian; append its arguments."""
    root = _unpacked((name,), suite or SUITES[name], architecture)
    (found,) = (path for place in _PROGRAMS if (path := root / place / name).exists())
    return [*_loader(root, architecture), str(found)]


def _loader(root: Path, architecture: str = "amd64") -> list[str]:
    triplet, loader = _TRIPLETS[architecture]
    libraries = root / "usr/lib" / triplet
    emulator = [] if architecture == "amd64" else ["qemu-aarch64"]
    return [*emulator, str(libraries / loader), "--library-path", str(libraries)]


def copy_program(package: str, name: str, suite: str, folder: Path) -> list[str]:
    """Copies `name` (in /usr/sbin of `package`) of a newer Debian with its libraries into `folder`; the words that
    start it, relative to that."""
    root = _unpacked((package,), suite)
    words = _loader(root)
    source = root / "usr/sbin" / name
    needed = run([words[0], *words[1:3], str(source)], timeout=60, env={"LD_TRACE_LOADED_OBJECTS": "1"})
    folder.mkdir(parents=True)
    shutil.copy(words[0], folder)
    shutil.copy(source, folder)
    for line in needed.splitlines():
        if " => " in line:
            shutil.copy(line.split(" => ")[1].split()[0], folder)
    return [Path(words[0]).name, "--library-path", ".", name]


def read_with(reader: str, *arguments: str | Path, timeout: float = 120) -> Any:
    """What `reading/with_READER.py` (drgn, kdumpfile) finds in a dump. Raises LabError when it does not open it."""
    root = _unpacked(READERS, NEWEST)
    (python,) = (root / "usr/bin").glob("python3.[0-9]*")
    argv = [*_loader(root), str(python), str(READING / f"with_{reader}.py"), *map(str, arguments)]
    modules = root / "usr/lib/python3/dist-packages"
    env = {**os.environ, "PYTHONHOME": str(root / "usr"), "PYTHONPATH": str(modules)}
    return json.loads(run(argv, timeout=timeout, env=env))


def crash(
    vmlinux: Path,
    dump: Path,
    commands: list[str],
    *options: str,
    suite: str | None = None,
    timeout: float = 180,
) -> str:
    """What crash(8) prints for `commands` on a dump. Raises AssertionError when it cannot open the dump."""
    with tempfile.NamedTemporaryFile("w", prefix="crash-commands-") as script:
        script.write("\n".join([*commands, "quit"]) + "\n")
        script.flush()
        argv = [*program("crash", suite=suite), "-s", *options, "-i", script.name, str(vmlinux), str(dump)]
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=timeout,
        )
    assert done.returncode == 0, f"crash does not open {dump}: exit {done.returncode}\n{done.stdout[-3000:]}"
    return done.stdout


@functools.cache
def _unpacked(packages: tuple[str, ...], suite: str, architecture: str = "amd64") -> Path:
    apt = AptRoot(suite, architecture)

    def make(scratch: Path) -> None:
        run(
            [
                "mmdebstrap", "--quiet", "--mode=root", "--variant=extract", f"--aptopt={KEEPS_OLD_LISTS}",
                f"--architectures={architecture}", f"--include={','.join(packages)}",
                suite, str(scratch / "root"), apt.sources[0],
            ],
            timeout=600,
        )  # fmt: skip

    name = packages[0] if architecture == "amd64" else f"{packages[0]}-{architecture}"
    key = digest(json.dumps(apt.versions(packages)))
    folder = made_once(CACHE / "tools", f"{name}-{suite}", key, make, part="root")
    if not any(list((folder / place).glob("*")) for place in _PROGRAMS):
        raise LabError(f"{folder}: {', '.join(packages)} was not unpacked")
    return folder
