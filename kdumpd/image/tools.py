# SPDX-License-Identifier: GPL-2.0-or-later
"""The builders that use the distribution's own tools: dracut(8) and mkinitramfs(8).

Each tool gets a folder with all that kdumpd itself puts into an image, adds what it starts a machine with (udev, its
own init) and what the administrator asked it for, and has our script run where it would mount the root file system.
What it made is read back, so that the image is written, listed and checked like any other. The host's own settings of
the tool and its own images are left alone.
"""

from __future__ import annotations

import os
import stat
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

from kdumpd.config.model import Builder
from kdumpd.errors import BuildError, os_reason
from kdumpd.host.kernels import Kernel
from kdumpd.image import archives, squash
from kdumpd.image.capture import find_shared
from kdumpd.image.contents import Tree, merged, read_source
from kdumpd.image.cpio import Entry
from kdumpd.image.record import Source

DRACUT_BASE = Path("/usr/lib/dracut")
_PROGRAMS = {Builder.DRACUT: "dracut", Builder.INITRAMFS_TOOLS: "mkinitramfs"}
_PACKAGES = {Builder.DRACUT: "dracut-core or dracut", Builder.INITRAMFS_TOOLS: "initramfs-tools-core"}
# The links of the root folder into /usr, which each tool makes as its distribution has them.
_THEIR_OWN = frozenset({"bin", "sbin", "lib", "lib32", "lib64"})
_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
_ENVIRONMENT = {"PATH": _PATH, "LC_ALL": "C.UTF-8", "SOURCE_DATE_EPOCH": "0"}
_SECONDS = 600
_LARGE = 64 << 10
# dracut copies root's password for its emergency shell: a secret that no capture needs. It keeps a record of how it was
# called, with folders that are different each time. initramfs-tools of Debian 13 has udev's names of all devices there
# are, 13 MB.
_LEFT_OUT = frozenset(
    {
        *("etc/shadow", "etc/shadow-", "etc/gshadow", "usr/lib/dracut/build-parameter.txt"),
        *("usr/lib/udev/hwdb.bin", "etc/udev/hwdb.bin"),
    }
)
# Only what every image of dracut needs; more is asked for by dracut_args.
_DRACUT_WORDS = (
    *("--force", "--hostonly", "--hostonly-mode", "strict", "--no-hostonly-cmdline", "--no-hostonly-default-device"),
    *("--no-hostonly-i18n", "--no-early-microcode", "--nostrip", "--no-compress", "--reproducible"),
    *("--modules", "kdumpd"),
)


def program(builder: Builder) -> str:
    """The tool's path. Raises BuildError when it is not installed."""
    for folder in _PATH.split(":"):
        path = f"{folder}/{_PROGRAMS[builder]}"
        if os.access(path, os.X_OK):
            return path
    raise BuildError(
        f"kdump.conf says 'builder {builder}', and {_PROGRAMS[builder]} is not installed",
        hint=f"install {_PACKAGES[builder]}, or remove the line: busybox is the default",
    )


def version(builder: Builder) -> tuple[str, ...]:
    """What tells one installation of the tool from the next: names, sizes and times of its parts. Raises BuildError."""
    parts = [program(builder)]
    if builder is Builder.DRACUT:
        parts += [str(DRACUT_BASE / "dracut-init.sh"), str(DRACUT_BASE / "modules.d")]
    else:
        parts += [
            f"/usr/share/initramfs-tools/{name}" for name in ("hook-functions", "hooks", "scripts/functions", "init")
        ]
    found = []
    for path in parts:
        try:
            status = os.stat(path)
            found.append(f"{path} {status.st_size} {status.st_mtime_ns}")
        except OSError:
            found.append(f"{path} is not there")
    return tuple(found)


def complete(tree: Tree, builder: Builder, arguments: tuple[str, ...], kernel: Kernel) -> Tree:
    """`tree` with all that the tool adds to it. Raises BuildError when it fails or leaves out what it was given."""
    make = {Builder.DRACUT: _dracut, Builder.INITRAMFS_TOOLS: _mkinitramfs}[builder]
    try:
        with tempfile.TemporaryDirectory(prefix="kdumpd-build-") as folder:
            scratch = Path(folder)
            squash.place_files(staged(tree), _made(scratch / "staged"))
            image = _run_tool(make, scratch, program(builder), arguments, kernel)
            made = archives.read(image, _PROGRAMS[builder])
    except OSError as error:
        raise BuildError(
            f"{_PROGRAMS[builder]} cannot be given its files: {error.filename}: {os_reason(error)}",
            hint=f"df -h {tempfile.gettempdir()}",
        ) from error
    return _joined(tree, made, _PROGRAMS[builder])


def staged(tree: Tree) -> list[Entry]:
    """What the tool is given: no device, and no link of the root folder, which it makes itself."""
    return [entry for path, entry in tree.entries.items() if path not in _THEIR_OWN and path.split("/")[0] != "dev"]


def _made(folder: Path) -> Path:
    folder.mkdir(mode=0o755)
    return folder


Maker = Callable[[Path, str, tuple[str, ...], Kernel, Path], tuple[list[str], dict[str, str]]]


def _run_tool(make: Maker, scratch: Path, path: str, arguments: tuple[str, ...], kernel: Kernel) -> bytes:
    made = scratch / "image"
    command, environment = make(scratch, path, arguments, kernel, made)
    (scratch / "tmp").mkdir(mode=0o700)
    name = os.path.basename(path)
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", check=False, umask=0o077,
            timeout=_SECONDS, cwd=scratch,
            env={**_ENVIRONMENT, "TMPDIR": str(scratch / "tmp"), **environment},
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise BuildError(f"{name} was not done within {_SECONDS} s", hint="builder busybox needs no tool") from error
    said = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    if done.returncode != 0 or not made.is_file() or made.stat().st_size == 0:
        last = next((line for line in reversed(said) if "error" in line.lower() or "fail" in line.lower()), None)
        raise BuildError(
            f"{name} failed with status {done.returncode}: {last or (said[-1] if said else 'it said nothing')}",
            hint="builder busybox needs no tool",
        )
    return made.read_bytes()


def _dracut(
    scratch: Path, path: str, arguments: tuple[str, ...], kernel: Kernel, made: Path
) -> tuple[list[str], dict[str, str]]:
    # A folder of modules that has ours beside the tool's own, installed or not.
    base = scratch / "dracut"
    (base / "modules.d").mkdir(parents=True)
    for part in DRACUT_BASE.iterdir():
        if part.name != "modules.d":
            (base / part.name).symlink_to(part)
    for module in (DRACUT_BASE / "modules.d").iterdir():
        if not module.name.endswith("kdumpd"):
            (base / "modules.d" / module.name).symlink_to(module)
    (base / "modules.d/50kdumpd").symlink_to(find_shared("dracut/50kdumpd"))
    settings = scratch / "settings"
    settings.mkdir()
    where = ("--conf", "/dev/null", "--confdir", str(settings), "--tmpdir", str(scratch / "tmp"))
    # The image's name stands before what kdump.conf adds, so that a stray word there cannot take its place.
    command = [path, str(made), kernel.release, *_DRACUT_WORDS, *where, "--kmoddir", str(kernel.modules), *arguments]
    return command, {"dracutbasedir": str(base), "KDUMPD_STAGED": str(scratch / "staged")}


def _mkinitramfs(
    scratch: Path, path: str, arguments: tuple[str, ...], kernel: Kernel, made: Path
) -> tuple[list[str], dict[str, str]]:
    settings = scratch / "settings"
    for folder in ("conf.d", "hooks", "scripts/init-premount"):
        (settings / folder).mkdir(parents=True)
    shared = find_shared("initramfs-tools")
    for name, mode in (("initramfs.conf", 0o644), ("hooks/kdumpd", 0o755), ("scripts/init-premount/kdumpd", 0o755)):
        (settings / name).write_bytes((shared / name).read_bytes())
        (settings / name).chmod(mode)
    (settings / "modules").touch()
    (scratch / "staged").rename(settings / "staged")
    return [path, "-d", str(settings), "-o", str(made), *arguments, kernel.release], {}


def _joined(tree: Tree, made: dict[str, Entry], tool: str) -> Tree:
    """What the tool made, with our own files known by their sources."""
    joined = Tree(notes=[*tree.notes, f"the image is unpacked into memory as a whole, with what {tool} adds to it"])
    for path in _LEFT_OUT:
        made.pop(path, None)
    for path, entry in tree.entries.items():
        if path in made and (stat.S_ISDIR(entry.mode) or path in _THEIR_OWN):
            continue
        if path in made and not _is_the_same(made, path, entry):
            raise BuildError(f"{tool} put another file in the place of /{path}", hint="builder busybox needs no tool")
        made[path] = entry
    for path, entry in _once(tree, made).items():
        # Parts of the image that the host has as well are facts that may change.
        joined.entries[path] = entry
        source = tree.sources.get(path)
        if source is None and stat.S_ISREG(entry.mode):
            source = _same_on_host(path, entry)
        if source is not None:
            joined.sources[path] = source
    return joined


def _once(tree: Tree, made: dict[str, Entry]) -> dict[str, Entry]:
    """`made`, where a large file of the tool's that is one of ours as well, by another name, is a link to it."""
    ours = {entry.content: entry for entry in tree.entries.values() if len(entry.content) >= _LARGE and entry.is_file}
    found = {}
    for path, entry in made.items():
        known = ours.get(entry.content) if entry.is_file and path not in tree.entries else None
        if known is not None and (known.mode & 0o111 or not entry.mode & 0o111):
            entry = Entry(path=path, mode=stat.S_IFLNK | 0o777, content=f"/{known.path}".encode())
        found[path] = entry
    return found


def _is_the_same(made: dict[str, Entry], path: str, entry: Entry) -> bool:
    """Whether `path` is, or for libraries also leads to, what we gave."""
    found = made.get(path)
    for _ in range(8):
        if found is None or not stat.S_ISLNK(found.mode) or stat.S_ISLNK(entry.mode):
            break
        path = os.path.normpath(os.path.join("/", os.path.dirname(path), os.fsdecode(found.content)))
        found = made.get(merged(path))
    return found is not None and (found.content, stat.S_IFMT(found.mode)) == (entry.content, stat.S_IFMT(entry.mode))


def _same_on_host(path: str, entry: Entry) -> Source | None:
    place = f"/{path}"
    try:
        status = os.lstat(place)
    except OSError:
        return None
    if not stat.S_ISREG(status.st_mode) or status.st_size != len(entry.content):
        return None
    data, source = read_source(place)
    return source if data == entry.content else None
