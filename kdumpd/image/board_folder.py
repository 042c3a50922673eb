# SPDX-License-Identifier: GPL-2.0-or-later
"""What goes to a board: the folder with kernel, device tree, image, command line, and the program that loads them.

The board has neither systemd nor kdumpd nor, perhaps, kexec-tools; Python it has, since the image is made of it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from kdumpd.errors import BuildError, os_reason
from kdumpd.image import pyclosure
from kdumpd.loader import board as program

KERNEL, TREE, IMAGE, CMDLINE, LOAD, README = "Image", "board.dtb", "capture-initramfs", "cmdline", "load.sh", "README"
PROGRAM = program.PROGRAM
_FIRST_TIME = (1980, 1, 1, 0, 0, 0)  # of zip files: equal input makes equal bytes
_STEM = "kdumpd.loader.board"

_LOAD = """\
#!/bin/sh
# Loads the capture kernel of this folder. Run it as root at each boot; made by kdumpctl build.
set -eu
case $0 in
*/*) cd "${{0%/*}}" ;;
esac
exec {command}
"""

_README = """\
A capture kernel for {kernel}, made by kdumpctl build
{line}

1. Copy this folder to the board, for example to /opt/kdump. It is for root alone.
2. Have the boot loader start the board's kernel with crashkernel={crashkernel} added to its command line. After a boot
   "cat /sys/kernel/kexec_crash_size" must print more than 0.
3. Have the board's init run, once at each boot and as root:

       sh /opt/kdump/{load}

   which is: {command}
   It ends with 0 when the kernel says that a capture kernel is loaded, else with a sentence that says why not.
4. Have a crash become a panic: "echo 1 > /proc/sys/kernel/panic_on_oops".
5. Try it: "echo c > /proc/sysrq-trigger" crashes the board. The dump goes to
   {targets}

The loader needs /usr/bin/python3 (3.11 or newer), /proc and /sys, and nothing else.{tools}

{files}
"""
_TOOLS = """
With kexec-tools instead (2.0.32 or newer; with others look whether the capture kernel has a /proc/vmcore):
       kexec -p {kernel} --initrd={image}{tree} --command-line="$(cat {cmdline})\""""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Folder:
    """What to put into the folder. `tree` is None for machines without device trees; `targets` are for people."""

    kernel: Path
    release: str
    tree: Path | None
    image: bytes
    cmdline: str
    targets: tuple[str, ...]
    crashkernel: str = "256M"

    @property
    def command(self) -> str:
        """The load command, to be run in the folder."""
        words = ["/usr/bin/python3", "-IS", PROGRAM, "--kernel", KERNEL, "--initrd", IMAGE, "--command-line", CMDLINE]
        return " ".join([*words, *(["--dtb", TREE] if self.tree is not None else [])])


def write(folder: Folder, out: Path) -> None:
    """Fills `out` (made if it is missing, 0700; files 0600 and 0700). Each file comes whole or not at all.

    Raises BuildError when there is no room or no right to write.
    """
    try:
        out.mkdir(mode=0o700, parents=True, exist_ok=True)
        out.chmod(0o700)
        _copy(folder.kernel, out / KERNEL)
        if folder.tree is not None:
            _copy(folder.tree, out / TREE)
        _put(out / IMAGE, folder.image)
        _put(out / CMDLINE, f"{folder.cmdline}\n".encode())
        _put(out / PROGRAM, loader_program(), mode=0o700)
        _put(out / LOAD, _LOAD.format(command=folder.command).encode(), mode=0o700)
        _put(out / README, _readme(folder).encode())
    except OSError as error:
        raise BuildError(
            f"{error.filename or out} cannot be written: {os_reason(error)}", hint=f"look at: df -h {out}"
        ) from error


def _readme(folder: Folder) -> str:
    title = f"A capture kernel for {folder.release}, made by kdumpctl build"
    tree = f" --dtb={TREE}" if folder.tree is not None else ""
    what = {
        KERNEL: "the kernel, which is started again after a crash",
        TREE: "the board's device tree",
        IMAGE: "the initramfs that saves the dump",
        CMDLINE: "the command line of the capture kernel",
        PROGRAM: "the loader, a Python program in one file",
        LOAD: "starts it",
    }
    if folder.tree is None:
        del what[TREE]
    return _README.format(
        kernel=folder.release,
        line="=" * len(title),
        crashkernel=folder.crashkernel,
        load=LOAD,
        command=folder.command,
        targets="\n   ".join(folder.targets),
        tools=_TOOLS.format(kernel=KERNEL, image=IMAGE, tree=tree, cmdline=CMDLINE),
        files="\n".join(f"{name:<20}{text}" for name, text in what.items()),
    )


def loader_program() -> bytes:
    """`kdumpd-load`: the loader with all that it imports of kdumpd, as a program in one file (zipapp)."""
    files = program_sources(_STEM)
    body = io.BytesIO()
    with zipfile.ZipFile(body, "w", zipfile.ZIP_DEFLATED) as archive:
        main = f"import sys\nfrom {_STEM} import main\nsys.exit(main())\n"
        texts = {"__main__.py": main.encode(), **{name: path.read_bytes() for name, path in files.items()}}
        for name in sorted(texts):
            entry = zipfile.ZipInfo(name, _FIRST_TIME)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o600 << 16
            archive.writestr(entry, texts[name])
    return b"#!/usr/bin/python3 -IS\n" + body.getvalue()


def program_sources(module: str) -> dict[str, Path]:
    """The sources of kdumpd that `module` imports, itself and the packages above them; by their path in the archive."""
    top = pyclosure.PACKAGE_DIR.parent
    found: dict[str, Path] = {}
    pending = [module]
    while pending:
        name = pending.pop()
        parts = name.split(".")
        for length in range(1, len(parts) + 1):
            base = top.joinpath(*parts[:length])
            path = base / "__init__.py" if base.is_dir() else base.with_suffix(".py")
            place = str(path.relative_to(top))
            if place in found or not path.is_file():
                continue
            found[place] = path
            for imported, names in pyclosure.imports_in([path]).items():
                if imported.split(".")[0] == "kdumpd":
                    pending += [imported, *(f"{imported}.{one}" for one in names)]
    return found


def _copy(source: Path, wanted: Path) -> None:
    if wanted.exists() and source.samefile(wanted):
        return
    with source.open("rb") as reading, _replacing(wanted, 0o600) as writing:
        shutil.copyfileobj(reading, writing, 1 << 20)


def _put(wanted: Path, data: bytes, mode: int = 0o600) -> None:
    with _replacing(wanted, mode) as writing:
        writing.write(data)


@contextlib.contextmanager
def _replacing(wanted: Path, mode: int) -> Iterator[IO[bytes]]:
    """A file that takes the place of `wanted` at the end of the block; it has its mode from the first byte."""
    handle, name = tempfile.mkstemp(dir=wanted.parent, prefix=f".{wanted.name}.")
    try:
        with open(handle, "wb") as file:
            os.fchmod(file.fileno(), mode)
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.rename(name, wanted)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise
