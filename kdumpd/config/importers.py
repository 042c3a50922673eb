# SPDX-License-Identifier: GPL-2.0-or-later
"""Other tools' settings, turned into lines of kdump.conf: Debian's /etc/default/kdump-tools, RHEL's and SUSE's
/etc/sysconfig/kdump. docs/IMPORT.md has the table.

Each line that comes out is read by our own parser before it is offered; what it does not take, and what has no
equivalent, is named with file:line. Text in, text out: nothing is read, written or run here.
"""

from __future__ import annotations

import dataclasses
import enum
import re
from collections.abc import Callable, Iterator, Mapping

from kdumpd.config.assignments import Assignment, parse_assignments
from kdumpd.config.model import Problem
from kdumpd.config.parse import parse_config


class Dialect(enum.StrEnum):
    """Whose settings they are."""

    DEBIAN = "debian"
    RHEL = "rhel"
    SUSE = "suse"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A directive of kdump.conf and the place it comes from."""

    directive: str
    value: str
    file: str
    line: int

    @property
    def text(self) -> str:
        """As it stands in kdump.conf."""
        return f"{self.directive} {self.value}"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """What became of a file: lines for kdump.conf, and everything that did not become one."""

    dialect: Dialect
    lines: tuple[Line, ...]
    problems: tuple[Problem, ...]

    def to_text(self) -> str:
        """A file for /etc/kdump.conf.d."""
        head = ["# SPDX-License-Identifier: GPL-2.0-or-later", "# Written by kdumpctl import-config."]
        body = [part for line in self.lines for part in (_comment(f"{line.file}:{line.line}"), line.text)]
        lost = [_comment(f"not taken over: {problem}") for problem in self.problems]
        return "\n".join([*head, *body, *lost]) + "\n"


def _comment(text: str) -> str:
    """One line, whatever stands in `text`."""
    return "# " + "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)


class _NoEquivalentError(Exception):
    """Why a setting does not become a line."""


_Pairs = list[tuple[str, str]]
_Reader = Callable[[str], _Pairs]


def import_settings(file: str, text: str, dialect: Dialect | None = None) -> Imported:
    """Reads the text of `file`. Without `dialect` the names in it tell whose it is. Never raises."""
    assignments, problems = parse_assignments(file, text)
    last: dict[str, Assignment] = {entry.name: entry for entry in assignments}
    dialect = dialect or detect(last)
    readers = _READERS[dialect]
    lines: list[Line] = []
    lost = list(problems)
    for name, entry in sorted(last.items(), key=lambda item: item[1].line):
        try:
            if name not in readers:
                raise _NoEquivalentError(f"{name} is not a setting that kdumpd knows")
            pairs = readers[name](entry.value.strip()) if entry.value.strip() else []
        except _NoEquivalentError as problem:
            lost.append(Problem(file=file, line=entry.line, message=str(problem), fatal=False))
            continue
        lines.extend(Line(directive=key, value=value, file=file, line=entry.line) for key, value in pairs)
    if dialect is Dialect.SUSE:
        lines.extend(_suse_collector(file, last, lost))
    kept, refused = _checked(lines)
    return Imported(
        dialect=dialect, lines=kept, problems=tuple(sorted([*lost, *refused], key=lambda problem: problem.line))
    )


def detect(names: Mapping[str, object]) -> Dialect:
    """Whose file it is: each has names that the others lack."""
    if "USE_KDUMP" in names or "KDUMP_COREDIR" in names or "MAKEDUMP_ARGS" in names:
        return Dialect.DEBIAN
    if "KDUMP_SAVEDIR" in names or "KDUMP_DUMPLEVEL" in names or "KDUMP_DUMPFORMAT" in names:
        return Dialect.SUSE
    return Dialect.RHEL


def _checked(lines: list[Line]) -> tuple[tuple[Line, ...], list[Problem]]:
    """The lines that our parser takes, each judged together with those before it, and its complaints about others."""
    kept: list[Line] = []
    refused: list[Problem] = []
    for line in lines:
        texts = [entry.text for entry in [*kept, line]]
        complaints = [] if len(line.text.splitlines()) == 1 else ["a line break in the value"]
        config = parse_config([("", "\n".join(texts))])
        complaints += [problem.message for problem in config.problems if problem.line == len(texts)]
        if complaints:
            message = f"'{line.text}' cannot be used: {complaints[0]}"
            refused.append(Problem(file=line.file, line=line.line, message=message, fatal=False))
        else:
            kept.append(line)
    return tuple(kept), refused


def _as(directive: str) -> _Reader:
    return lambda value: [(directive, value)]


def _nothing(value: str) -> _Pairs:
    """What kdumpd does anyway, or decides better by itself."""
    del value
    return []


def _lost(reason: str) -> _Reader:
    def refuse(value: str) -> _Pairs:
        raise _NoEquivalentError(f"'{value}' is not taken over: {reason}")

    return refuse


def _secret(reason: str) -> _Reader:
    """Like `_lost`, for a value that must not be repeated."""

    def refuse(value: str) -> _Pairs:
        del value
        raise _NoEquivalentError(f"the password is not taken over: {reason}")

    return refuse


def _only(wanted: str, reason: str) -> _Reader:
    """A setting that says nothing as long as it has the value `wanted`."""

    def compare(value: str) -> _Pairs:
        if value.lower() not in wanted.split("|"):
            raise _NoEquivalentError(f"'{value}' is not taken over: {reason}")
        return []

    return compare


def _fail_command(value: str) -> _Pairs:
    match = re.fullmatch(r"(?:/?(?:usr/)?s?bin/)?(reboot|halt|poweroff)(?: -f)?", value)
    if match is None:
        raise _NoEquivalentError(f"the command '{value}' is not run; failure_action is reboot, halt or poweroff")
    return [("failure_action", match[1])]


def _makedump_args(value: str) -> _Pairs:
    return [("core_collector", f"makedumpfile {value}")]


def _append(value: str) -> _Pairs:
    """Words for the capture kernel. The number of processors has a directive; systemd does not run in our image."""
    words = [word for word in value.split() if not word.startswith(("systemd.", "rd."))]
    cpus = [word.partition("=")[2] for word in words if re.match(r"(nr_cpus|maxcpus)=", word)]
    rest = [word for word in words if not re.match(r"(nr_cpus|maxcpus)=", word)]
    pairs = [("nr_cpus", cpus[-1])] if cpus else []
    return [*pairs, ("commandline_append", " ".join(rest))] if rest else pairs


def _kexec_options(value: str) -> _Pairs:
    """-a is kexec's own fallback from one way to the other, which kdumpd has too."""
    known = {"-s": "kexec_file_load", "-c": "kexec_load"}
    options = [option for option in value.split() if option != "-a"]
    if len(options) > 1 or any(option not in known for option in options):
        raise _NoEquivalentError(f"'{value}' is not taken over: of kexec's options -s, -c and -a have an equivalent")
    return [("kexec_syscall", known[option]) for option in options]


def _suse_target(value: str) -> _Pairs:
    """KDUMP_SAVEDIR: a folder or a URL (kdump(5) of openSUSE)."""
    scheme, mark, rest = value.partition("://")
    if not mark:
        return [("path", value)]
    if scheme == "file":
        return [("path", rest)]
    host, slash, path = rest.partition("/")
    if scheme == "nfs" and slash:
        return [("nfs", f"{host}:/{path}")]
    if scheme == "ssh" and slash:
        user, at, address = host.rpartition("@")
        if ":" in user:
            raise _NoEquivalentError("a password in KDUMP_SAVEDIR is not taken over: use a key, see sshkey")
        return [("ssh", f"{user if at else 'root'}@{address}"), ("path", f"/{path}")]
    raise _NoEquivalentError(f"'{scheme}:' is not a target of kdumpd; use a filesystem, nfs or ssh")


def _suse_collector(file: str, last: Mapping[str, Assignment], lost: list[Problem]) -> Iterator[Line]:
    """Level and format are one directive here."""
    formats = {"compressed": "-c", "lzo": "-l", "snappy": "-p", "zstd": "-z"}
    level, form = (last.get(name) for name in ("KDUMP_DUMPLEVEL", "KDUMP_DUMPFORMAT"))
    given = [entry for entry in (level, form) if entry is not None and entry.value]
    flag = "-z"
    if form in given and form is not None:
        if form.value.lower() in formats:
            flag = formats[form.value.lower()]
        else:
            message = f"the format '{form.value}' is not taken over: dumps are kdump-compressed"
            lost.append(Problem(file=file, line=form.line, message=message, fatal=False))
            given.remove(form)
    if given:
        # What is not said is 31 there; with core_collector it would be 0 here.
        wanted = level.value if level is not None and level.value else "31"
        yield Line(
            directive="core_collector",
            value=f"makedumpfile {flag} -d {wanted}",
            file=file,
            line=max(entry.line for entry in given),
        )


def _number_kept(value: str) -> _Pairs:
    """Debian: how many dumps are kept, 0 for all."""
    return [] if value == "0" else [("keep_crashes", value)]


def _old_kept(value: str) -> _Pairs:
    """SUSE: how many are kept when the next one comes, -1 for all, -2 and 0 for none. The newest one stays here."""
    if value == "-1":
        return []
    if not re.fullmatch(r"-2|[0-9]{1,4}", value):
        raise _NoEquivalentError(f"'{value}' is not a number of dumps")
    return [("keep_crashes", str(max(0, int(value)) + 1))]


def _true_or(directive: str, yes: str, no: str) -> _Reader:
    return lambda value: [(directive, yes if value.lower() in ("true", "yes", "1") else no)]


def _true_is(directive: str, value: str, otherwise: str) -> _Reader:
    def read(text: str) -> _Pairs:
        if text.lower() in ("true", "yes", "1"):
            return [(directive, value)]
        raise _NoEquivalentError(f"'{text}' is not taken over: {otherwise}")

    return read


_KERNEL = "kdumpd arms the running kernel with an image of its own"
_MAIL = "kdumpd sends no mail; its journal entry has a MESSAGE_ID to watch, and on_crash runs programs"
_LOGGING = "the journal and the console of the capture kernel say all there is"

_READERS: Mapping[Dialect, Mapping[str, _Reader]] = {
    Dialect.DEBIAN: {
        "USE_KDUMP": _only("1", "the service is switched off with: systemctl disable --now kdumpd"),
        "KDUMP_COREDIR": _as("path"),
        "KDUMP_FAIL_CMD": _fail_command,
        "MAKEDUMP_ARGS": _makedump_args,
        "NFS": _as("nfs"),
        "SSH": _as("ssh"),
        "SSH_KEY": _as("sshkey"),
        "NFS_TIMEO": _lost("the mount options of NFS are fixed"),
        "NFS_RETRANS": _lost("the mount options of NFS are fixed"),
        "NFS_MOUNT_RETRY": _lost("the mount options of NFS are fixed"),
        "SSH_KDUMP_RETRY": _lost("the number of tries is fixed"),
        "FTP": _lost("FTP is not a target"),
        "FTP_USER": _lost("FTP is not a target"),
        "FTP_PASSWORD": _secret("FTP is not a target"),
        "FTP_PORT": _lost("FTP is not a target"),
        "HOSTTAG": _only("hostname", "crash folders carry the host's name"),
        "KDUMP_DUMP_DMESG": _only("1", "the kernel log is always saved, and first"),
        "KDUMP_COMPRESSION": _lost("pages are packed one by one, see core_collector; the file is not packed again"),
        "KDUMP_NUM_DUMPS": _number_kept,
        "KDUMP_KERNEL": _lost(_KERNEL),
        "KDUMP_INITRD": _lost(_KERNEL),
        "KDUMP_CMDLINE": _as("commandline"),
        "KDUMP_CMDLINE_APPEND": _append,
        "KDUMP_KEXEC_ARGS": _kexec_options,
        "KDUMP_SYSCTL": _lost("put it into a file in /etc/sysctl.d"),
    },
    Dialect.RHEL: {
        "KDUMP_KERNELVER": _lost(_KERNEL),
        "KDUMP_BOOTDIR": _only("/boot", _KERNEL),
        "KDUMP_IMG": _only("vmlinuz", _KERNEL),
        "KDUMP_IMG_EXT": _lost(_KERNEL),
        "KDUMP_COMMANDLINE": _as("commandline"),
        "KDUMP_COMMANDLINE_REMOVE": _as("commandline_remove"),
        "KDUMP_COMMANDLINE_APPEND": _append,
        "FADUMP_COMMANDLINE_APPEND": _lost("firmware-assisted dumps are not used"),
        "KEXEC_ARGS": _kexec_options,
        "KDUMP_STDLOGLVL": _lost(_LOGGING),
        "KDUMP_SYSLOGLVL": _lost(_LOGGING),
        "KDUMP_KMSGLOGLVL": _lost(_LOGGING),
    },
    Dialect.SUSE: {
        "KDUMP_SAVEDIR": _suse_target,
        "KDUMP_DUMPLEVEL": _nothing,  # see _suse_collector
        "KDUMP_DUMPFORMAT": _nothing,
        "MAKEDUMPFILE_OPTIONS": _lost("write the options into core_collector"),
        "KDUMP_CONTINUE_ON_ERROR": _true_or("failure_action", "reboot", "shell"),
        "KDUMP_IMMEDIATE_REBOOT": _true_is("final_action", "reboot", "it asks for a shell, see final_action"),
        "KDUMP_KEEP_OLD_DUMPS": _old_kept,
        "KDUMP_FREE_DISK_SIZE": lambda value: [("keep_free", f"{value}M")],
        "KDUMP_PRESCRIPT": _as("kdump_pre"),
        "KDUMP_POSTSCRIPT": _as("kdump_post"),
        "KDUMP_REQUIRED_PROGRAMS": _as("extra_bins"),
        "KDUMP_TRANSFER": _lost("a command in place of the collector is not run"),
        "KDUMP_KERNELVER": _lost(_KERNEL),
        "KDUMP_COMMANDLINE": _as("commandline"),
        "KDUMP_COMMANDLINE_APPEND": _append,
        "KDUMP_CPUS": _as("nr_cpus"),
        "KEXEC_OPTIONS": _kexec_options,
        "KDUMP_AUTO_RESIZE": _only("no|false", "the reservation is set with: kdumpctl reservation set"),
        "KDUMP_CRASHKERNEL": _lost("the reservation is set with: kdumpctl reservation set"),
        "KDUMP_UPDATE_BOOTLOADER": _lost("the reservation is set with: kdumpctl reservation set"),
        "KDUMP_FADUMP": _only("no|false", "firmware-assisted dumps are not used"),
        "KDUMP_FADUMP_SHELL": _only("no|false", "firmware-assisted dumps are not used"),
        "FADUMP_COMMANDLINE_APPEND": _lost("firmware-assisted dumps are not used"),
        "KDUMP_COPY_KERNEL": _lost("the kernel is not copied beside the dump"),
        "KDUMP_HOST_KEY": _lost("host keys are taken from the known_hosts files"),
        "KDUMP_SSH_IDENTITY": _as("sshkey"),
        "KDUMP_NETCONFIG": _lost("the network of the running system is used"),
        "KDUMP_NET_TIMEOUT": _as("deadline_network"),
        "KDUMP_VERBOSE": _lost(_LOGGING),
        "KDUMP_NOTIFICATION_TO": _lost(_MAIL),
        "KDUMP_NOTIFICATION_CC": _lost(_MAIL),
        "KDUMP_SMTP_SERVER": _lost(_MAIL),
        "KDUMP_SMTP_USER": _lost(_MAIL),
        "KDUMP_SMTP_PASSWORD": _secret(_MAIL),
    },
}  # fmt: skip


def known_names() -> Mapping[Dialect, frozenset[str]]:
    """The settings that are understood, for the test of docs/IMPORT.md."""
    return {dialect: frozenset(readers) for dialect, readers in _READERS.items()}
