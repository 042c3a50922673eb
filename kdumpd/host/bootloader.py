# SPDX-License-Identifier: GPL-2.0-or-later
"""crashkernel= of the next boot: where a machine's boot loader gets its kernel command line from, and how to change it.

Three ways are known: GRUB as Debian sets it up (a drop-in of our own in /etc/default/grub.d, then update-grub), grubby
(Fedora, RHEL: boot loader entries), and kernel-install (/etc/kernel/cmdline, systemd-boot and unified kernel images).
`plan_change` reads and returns a `Change` that can be shown; `apply_change` carries it out. A value that a person wrote
stays in its file where that is possible, and is named: the kernel takes the last crashkernel= of a class.
"""

from __future__ import annotations

import dataclasses
import difflib
import enum
import os
import re
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

from kdumpd.errors import DeniedError, KdumpError, NotFoundError, UnsupportedError, UsageError, os_reason
from kdumpd.host.crashkernel import Kind, parse_entry
from kdumpd.host.files import below
from kdumpd.host.kernels import installed_kernels

GRUB_DEFAULT = "/etc/default/grub"
GRUB_DROPINS = "/etc/default/grub.d"
OUR_DROPIN = GRUB_DROPINS + "/kdumpd.cfg"
KERNEL_CMDLINE = "/etc/kernel/cmdline"
_WORD = re.compile(r"(?<![\w.-])crashkernel=([^\s\"'\\]+)")
_COMMAND_SECONDS = 300.0


class Loader(enum.StrEnum):
    """Who writes the kernel command line."""

    GRUB = "grub"
    GRUBBY = "grubby"
    KERNEL_INSTALL = "kernel-install"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One crashkernel= found in a boot loader's configuration; `line` is 0 where lines mean nothing."""

    value: str
    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: crashkernel={self.value}" if self.line else f"{self.file}: {self.value}"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Edit:
    """A file before and after; `before` is None for a new one. `virtual` texts are shown, not written."""

    path: str
    before: str | None
    after: str
    virtual: bool = False

    def diff(self) -> str:
        """As diff -u shows it."""
        old = "/dev/null" if self.before is None else self.path
        lines = difflib.unified_diff(
            (self.before or "").splitlines(keepends=True), self.after.splitlines(keepends=True), old, self.path
        )
        return "".join(line if line.endswith("\n") else line + "\n" for line in lines)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What has to happen for the next boot to have `values`; nothing when `edits` is empty."""

    loader: Loader
    values: tuple[str, ...]
    edits: tuple[Edit, ...]
    commands: tuple[tuple[str, ...], ...]
    kept: tuple[Setting, ...] = ()

    def diff(self) -> str:
        """All edits, one after the other."""
        return "".join(edit.diff() for edit in self.edits)


Runner = Callable[[Sequence[str]], str]


def check_values(values: Sequence[str]) -> tuple[str, ...]:
    """`values` in the order in which they belong on a command line. Raises UsageError for what no kernel takes.

    A kernel without ,cma (before v6.17) takes such a word for a plain one that it cannot read, and the last plain one
    counts: so ,cma goes first.
    """
    entries = [parse_entry(value.removeprefix("crashkernel=")) for value in values]
    for entry in entries:
        if entry.error is not None:
            raise UsageError(f"crashkernel={entry.text} cannot be used: {entry.error}", hint="for example: 256M")
    kinds = [entry.kind for entry in entries]
    if len(set(kinds)) < len(kinds):
        raise UsageError(f"crashkernel= is given twice in class {max(kinds, key=kinds.count)}")
    if not {Kind.PLAIN, Kind.HIGH} & set(kinds):
        raise UsageError("a capture kernel needs a main area", hint="for example: 256M, or 512M,high 128M,low")
    return tuple(entry.text for entry in sorted(entries, key=lambda entry: entry.kind is not Kind.CMA))


def find_loader(root: Path = Path("/")) -> Loader:
    """How this machine is told its command line. Raises UnsupportedError where that is not known."""
    if below(root, "/run/ostree-booted").exists() or below(root, "/ostree/repo").exists():
        raise UnsupportedError(
            "The kernel command line of this machine belongs to ostree",
            hint="rpm-ostree kargs --append-if-missing=crashkernel=256M",
        )
    if _program("grubby", root) is not None:
        return Loader.GRUBBY
    if _program("update-grub", root) is not None and below(root, GRUB_DEFAULT).exists():
        return Loader.GRUB
    if _program("kernel-install", root) is not None and below(root, KERNEL_CMDLINE).exists():
        return Loader.KERNEL_INSTALL
    raise UnsupportedError(
        "kdumpd does not know this machine's boot loader: there is no grubby, no update-grub, and no kernel-install"
        f" with {KERNEL_CMDLINE}",
        hint="put crashkernel=256M on the kernel command line where your boot loader has it",
    )


def read_settings(root: Path = Path("/"), run: Runner | None = None) -> tuple[Setting, ...]:
    """Each crashkernel= that the boot loader's configuration holds, in the order of the command line.

    Raises UnsupportedError when the boot loader is not known.
    """
    loader = find_loader(root)
    if loader is Loader.GRUBBY:
        return tuple(
            Setting(value=args, file=kernel, line=0) for kernel, args in _grubby_args(run or _runner(root)) if args
        )
    files = [KERNEL_CMDLINE] if loader is Loader.KERNEL_INSTALL else _grub_files(root)
    return tuple(setting for file in files for setting in _in_file(file, root))


def plan_change(values: Sequence[str], root: Path = Path("/"), run: Runner | None = None) -> Change:
    """What makes the next boot have crashkernel= with `values`. Raises UsageError, UnsupportedError."""
    wanted = check_values(values)
    loader = find_loader(root)
    words = " ".join(f"crashkernel={value}" for value in wanted)
    if loader is Loader.GRUB:
        return _plan_grub(wanted, words, root)
    if loader is Loader.GRUBBY:
        return _plan_grubby(wanted, words, run or _runner(root))
    return _plan_kernel_install(wanted, words, root)


def apply_change(change: Change, root: Path = Path("/"), run: Runner | None = None) -> None:
    """Writes the files and runs the commands. When one fails, the files are as they were before, and what the commands
    made of them is made again. Raises KdumpError."""
    run = run or _runner(root)
    written: list[Edit] = []
    begun: list[tuple[str, ...]] = []
    try:
        for edit in change.edits:
            if not edit.virtual:
                _write(below(root, edit.path), edit.after)
                written.append(edit)
        for command in change.commands:
            begun.append(command)
            run(command)
    except (KdumpError, OSError) as error:
        for edit in reversed(written):
            _put_back(edit, root)
        left = _run_again(begun, run) if written else ""
        if isinstance(error, PermissionError):
            raise DeniedError(f"{error.filename} may not be written", hint="use sudo") from error
        if isinstance(error, OSError):
            raise KdumpError(f"{error.filename} cannot be written: {os_reason(error)}; nothing was changed") from error
        raise type(error)(f"{error.sentence}; the files are as they were{left}", hint=error.hint) from error


def _run_again(commands: Sequence[tuple[str, ...]], run: Runner) -> str:
    """Kernels that were told before one of them failed have the new value already, and so may that one. What is to be
    said of those for which it does not go."""
    failed = []
    for command in commands:
        try:
            run(command)
        except KdumpError:
            failed.append(" ".join(command))
    return f", but this has to be run again once it works: {'; '.join(failed)}" if failed else ""


def _plan_grub(wanted: tuple[str, ...], words: str, root: Path) -> Change:
    """GRUB_CMDLINE_LINUX_DEFAULT stands behind GRUB_CMDLINE_LINUX in each entry, and our file behind the others."""
    after = (
        "# Written by: kdumpctl reservation set\n"
        f'GRUB_CMDLINE_LINUX_DEFAULT="$GRUB_CMDLINE_LINUX_DEFAULT {words}"\n'
    )  # fmt: skip
    before = _read(OUR_DROPIN, root)
    files = _grub_files(root)
    kept = tuple(setting for file in files if file != OUR_DROPIN for setting in _in_file(file, root))
    plain = [setting for setting in kept if parse_entry(setting.value).kind is Kind.PLAIN]
    if plain and not any(parse_entry(value).kind is Kind.PLAIN for value in wanted):
        raise UnsupportedError(
            f"{plain[0]} stands there, and a plain size makes ,high and ,low void",
            hint=f"take it out of {plain[0].file}",
        )
    later = [setting for setting in kept if setting.file > OUR_DROPIN]
    if later:
        raise UnsupportedError(
            f"{later[0]} is read after {OUR_DROPIN} and would count instead", hint=f"change {later[0].file}"
        )
    edits = () if before == after else (Edit(path=OUR_DROPIN, before=before, after=after),)
    return Change(
        loader=Loader.GRUB, values=wanted, edits=edits, commands=(("update-grub",),) if edits else (), kept=kept
    )


def _plan_kernel_install(wanted: tuple[str, ...], words: str, root: Path) -> Change:
    before = _read(KERNEL_CMDLINE, root) or ""
    others = [word for word in before.split() if not word.startswith("crashkernel=")]
    after = " ".join([*others, words]) + "\n"
    if before.split() == after.split():
        return Change(loader=Loader.KERNEL_INSTALL, values=wanted, edits=(), commands=())
    commands = tuple(
        ("kernel-install", "add", kernel.release, "/" + str(kernel.image.relative_to(root)))
        for kernel in installed_kernels(root)
    )
    edit = Edit(path=KERNEL_CMDLINE, before=before, after=after)
    return Change(loader=Loader.KERNEL_INSTALL, values=wanted, edits=(edit,), commands=commands)


def _plan_grubby(wanted: tuple[str, ...], words: str, run: Runner) -> Change:
    edits = []
    for kernel, args in _grubby_args(run):
        if args != words:
            edits.append(Edit(path=kernel, before=args + "\n", after=words + "\n", virtual=True))
    command = ("grubby", "--update-kernel=ALL", "--remove-args=crashkernel", f"--args={words}")
    return Change(loader=Loader.GRUBBY, values=wanted, edits=tuple(edits), commands=(command,) if edits else ())


def _grubby_args(run: Runner) -> list[tuple[str, str]]:
    """Kernel and its crashkernel= words, for each entry that grubby(8) knows."""
    found = []
    kernel = ""
    for line in run(("grubby", "--info=ALL")).splitlines():
        name, _, value = line.partition("=")
        if name == "kernel":
            kernel = value.strip('"')
        elif name == "args" and kernel:
            found.append((kernel, " ".join(f"crashkernel={match}" for match in _WORD.findall(value))))
    if not found:
        raise NotFoundError("grubby knows no boot entry", hint="grubby --info=ALL")
    return found


def _grub_files(root: Path) -> list[str]:
    """What grub-mkconfig(8) of Debian reads, in its order."""
    drop_ins = sorted(path.name for path in below(root, GRUB_DROPINS).glob("*.cfg"))
    return [GRUB_DEFAULT, *(f"{GRUB_DROPINS}/{name}" for name in drop_ins)]


def _in_file(file: str, root: Path) -> list[Setting]:
    text = _read(file, root) or ""
    return [
        Setting(value=match, file=file, line=number)
        for number, line in enumerate(text.splitlines(), start=1)
        if not line.lstrip().startswith("#")
        for match in _WORD.findall(line)
    ]


def _read(file: str, root: Path) -> str | None:
    """The text, None without such a file. Raises KdumpError for one that cannot be read: that is not an empty one."""
    try:
        return below(root, file).read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except PermissionError as error:
        raise DeniedError(f"{file} may not be read", hint="use sudo") from error
    except OSError as error:
        raise KdumpError(f"{file} cannot be read: {os_reason(error)}") from error
    except UnicodeDecodeError as error:
        raise KdumpError(f"{file} is not UTF-8 text", hint="put crashkernel= there by hand") from error


def _program(name: str, root: Path) -> Path | None:
    places = (below(root, f"/{folder}/{name}") for folder in ("usr/sbin", "usr/bin", "sbin", "bin"))
    return next((path for path in places if path.exists()), None)


def _runner(root: Path) -> Runner:
    """Runs commands of the machine below `root`: in a chroot unless that is the running one."""

    def run(command: Sequence[str]) -> str:
        words = [*([] if root == Path("/") else ["chroot", str(root)]), *command]
        path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        try:
            done = subprocess.run(
                words,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=_COMMAND_SECONDS,
                env={"PATH": path, "LC_ALL": "C.UTF-8"},
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise KdumpError(f"{command[0]} cannot be run: {error}") from error
        if done.returncode != 0:
            last = (done.stderr.strip() or done.stdout.strip() or "it said nothing").splitlines()[-1]
            raise KdumpError(f"{' '.join(command)} failed with status {done.returncode}: {last}")
        return done.stdout

    return run


def _write(path: Path, text: str) -> None:
    """Old or new at every moment, mode 0644 or what it had. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    mode = path.stat().st_mode & 0o777 if path.exists() else 0o644
    temporary = path.with_name(f".{path.name}.kdumpd-new")
    with open(temporary, "w", encoding="utf-8") as file:
        os.fchmod(file.fileno(), mode)
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)


def _put_back(edit: Edit, root: Path) -> None:
    path = below(root, edit.path)
    if edit.before is None:
        path.unlink(missing_ok=True)
    else:
        _write(path, edit.before)
