# SPDX-License-Identifier: GPL-2.0-or-later
"""Reads kdump.conf: text in, `Config` out. Never fails on bad text; it collects `Problem`s with file:line.

The language is RHEL's (kdump.conf(5)): one directive and its value per line, `#` starts a comment, a value
in double quotes loses them. Drop-ins are read after the main file in the order of their names; a later file
overrides an earlier one, a directive given twice in one file is an error. A problem is fatal where following
the rest of the file could send the dump to another place than its owner meant; an unknown directive is not,
because a typing error in a detail must not leave a machine unarmed.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from kdumpd.config import loading
from kdumpd.config.core_collector import parse_core_collector
from kdumpd.config.model import Action, Config, OnUnload, Problem
from kdumpd.config.targets import LocalTarget

CONFIG_FILE = "etc/kdump.conf"
DROPIN_DIR = "etc/kdump.conf.d"

FILESYSTEMS = frozenset({"ext2", "ext3", "ext4", "xfs", "btrfs"})
_TARGETS = FILESYSTEMS | {"raw", "nfs", "ssh", "minix", "virtiofs", "net"}
# Directives of RHEL's language that change nothing in how this version captures: a note, not an error.
_WITHOUT_EFFECT = frozenset({
    "sshkey", "extra_modules", "force_rebuild", "force_no_rebuild", "dracut_args",
    "auto_reset_crashkernel", "fence_kdump_args",
})  # fmt: skip
# Those whose loss somebody would notice only after the crash: refused, rather than left out in silence.
_UNAVAILABLE = frozenset({"kdump_pre", "kdump_post", "kdump_emergency", "extra_bins", "fence_kdump_nodes"})
_OBSOLETE = frozenset({"options", "link_delay", "disk_timeout", "debug_mem_level", "blacklist"})
_DEVICE = re.compile(r"(LABEL|UUID)=[^\s\x00-\x1f/]{1,64}|/dev/[A-Za-z0-9._/:@+-]{1,200}")


class _ValueProblemError(Exception):
    """What is wrong with one value; becomes a fatal Problem."""


def _path(value: str) -> str:
    if not value.startswith("/"):
        raise _ValueProblemError(f"path must begin with a slash, '{value}' does not")
    if ".." in value.split("/"):
        raise _ValueProblemError("path must not contain '..'")
    return "/" + "/".join(part for part in value.split("/") if part)


def _action(value: str) -> Action:
    try:
        return Action(value)
    except ValueError:
        known = ", ".join(Action)
        if value in ("shell", "dump_to_rootfs"):
            raise _ValueProblemError(f"'{value}' is not available in this version; use one of {known}") from None
        raise _ValueProblemError(f"'{value}' is not an action; use one of {known}") from None


def _on_unload(value: str) -> OnUnload:
    try:
        return OnUnload(value)
    except ValueError:
        raise _ValueProblemError(f"'{value}' is not a thing to do; use one of {', '.join(OnUnload)}") from None


def _target(fstype: str, value: str) -> LocalTarget:
    if fstype not in FILESYSTEMS:
        raise _ValueProblemError(
            f"a '{fstype}' target is not available in this version; use one of {', '.join(sorted(FILESYSTEMS))}"
        )
    if not _DEVICE.fullmatch(value) or ".." in value:
        raise _ValueProblemError(f"'{value}' names no device; use /dev/..., LABEL=... or UUID=...")
    return LocalTarget(fstype=fstype, device=value)


def _core_collector(value: str) -> dict[str, object]:
    options = parse_core_collector(value)
    if options.problems:
        raise _ValueProblemError("; ".join(options.problems))
    return {"dump": options.dump}


def _changes(name: str, value: str) -> dict[str, object]:
    """The fields of Config that one directive sets. Raises _ValueProblemError."""
    readers: dict[str, Callable[[str], dict[str, object]]] = {
        "path": lambda text: {"path": _path(text)},
        "final_action": lambda text: {"final_action": _action(text)},
        "failure_action": lambda text: {"failure_action": _action(text)},
        "default": lambda text: {"failure_action": _action(text)},
        "on_unload": lambda text: {"on_unload": _on_unload(text)},
        "core_collector": _core_collector,
    }
    if name in _TARGETS:
        return {"targets": (_target(name, value),)}
    if name in loading.READERS:
        try:
            return {name: loading.READERS[name](value)}
        except ValueError as error:
            raise _ValueProblemError(str(error)) from error
    return readers[name](value)


_KNOWN = ("path", "final_action", "failure_action", "default", "core_collector", "on_unload", *loading.READERS)


def directives() -> frozenset[str]:
    """All names that mean something here, if only that they are refused."""
    return frozenset(_KNOWN) | _TARGETS | _UNAVAILABLE | _WITHOUT_EFFECT | _OBSOLETE


def _unknown(name: str) -> str:
    close = difflib.get_close_matches(name, [*_KNOWN, *_TARGETS, *_UNAVAILABLE, *_WITHOUT_EFFECT], n=1)
    guess = f"; did you mean '{close[0]}'?" if close else ""
    return f"unknown directive '{name}'{guess}"


def _parse_line(line: str) -> tuple[str, str] | None:
    """Directive and value, or None for a blank line. A comment ends the value, also inside quotes, as on RHEL."""
    text = line.split("#", 1)[0].strip()
    if not text:
        return None
    name, _, value = text.partition(" ") if " " in text else text.partition("\t")
    value = value.strip()
    if len(value) >= 2 and value[0] == value[-1] == '"':
        value = value[1:-1]
    return name.strip(), value


def parse_config(files: Sequence[tuple[str, str]]) -> Config:
    """Merges the texts of `files`, (name, text) each, in the order in which they override each other."""
    values: dict[str, object] = {}
    problems: list[Problem] = []

    for file, text in files:
        seen: dict[str, int] = {}
        for number, line in enumerate(text.splitlines(), start=1):

            def complain(message: str, *, fatal: bool, file: str = file, number: int = number) -> None:
                problems.append(Problem(file=file, line=number, message=message, fatal=fatal))

            if any(ord(char) < 32 and char != "\t" for char in line):
                complain("a control character in the line", fatal=True)
                continue
            parsed = _parse_line(line)
            if parsed is None:
                continue
            name, value = parsed
            key = "target" if name in _TARGETS else "failure_action" if name == "default" else name
            if key in seen:
                complain(f"'{name}' was already set in line {seen[key]}", fatal=True)
            elif name in _OBSOLETE:
                complain(f"'{name}' is obsolete and has no effect; see kdump.conf(5)", fatal=False)
            elif name in _WITHOUT_EFFECT:
                complain(f"'{name}' has no effect in this version", fatal=False)
            elif name in _UNAVAILABLE:
                complain(f"'{name}' is not available in this version; remove the line", fatal=True)
            elif name not in _TARGETS and name not in _KNOWN:
                complain(_unknown(name), fatal=False)
            elif not value:
                complain(f"'{name}' has no value", fatal=True)
            else:
                try:
                    values.update(_changes(name, value))
                except _ValueProblemError as problem:
                    complain(str(problem), fatal=True)
            seen.setdefault(key, number)

    return dataclasses.replace(Config(problems=tuple(problems)), **values)  # type: ignore[arg-type]  # keys are fields


def config_files(root: Path) -> list[Path]:
    """The files that exist, in the order in which they override each other. A link to /dev/null masks a drop-in."""
    drop_ins = sorted((root / DROPIN_DIR).glob("*.conf"), key=lambda path: path.name)
    paths = [root / CONFIG_FILE, *drop_ins]
    return [path for path in paths if path.exists() and not (path.is_symlink() and str(path.readlink()) == "/dev/null")]


def read_config(root: Path = Path("/")) -> Config:
    """The configuration of the machine below `root`. An unreadable file is a fatal problem of its line 0."""
    texts: list[tuple[str, str]] = []
    unreadable: list[Problem] = []
    for path in config_files(root):
        shown = "/" + str(path.relative_to(root))
        try:
            texts.append((shown, path.read_text(encoding="utf-8")))
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
            unreadable.append(Problem(file=shown, line=0, message=f"cannot be read: {reason}", fatal=True))
    config = parse_config(texts)
    return dataclasses.replace(config, problems=(*unreadable, *config.problems))
