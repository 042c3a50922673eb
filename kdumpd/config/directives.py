# SPDX-License-Identifier: GPL-2.0-or-later
"""Every directive of kdump.conf but the targets: its name, and what its value changes in `Config`.

Fields of `DumpSettings` and `Deadlines` are written "dump.field" and "deadlines.field". What a target looks like is
in `target_lines`, what a kernel command line may hold in `loading`, what makes the image in `building`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping

from kdumpd.config import building, loading
from kdumpd.config.age_keys import recipient_keys
from kdumpd.config.core_collector import (
    COMPRESSION_LEVELS,
    MAX_LEVEL,
    MAX_THREADS,
    external_collector,
    parse_core_collector,
)
from kdumpd.config.layout import Layout, host_label
from kdumpd.config.model import FINAL_ACTIONS, Action, Compression, DumpSettings, OnUnload
from kdumpd.config.target_lines import host_name
from kdumpd.config.values import absolute_path, choice, one_path, seconds, size_or_percent, switch, whole_number, words

Changes = dict[str, object]
Reader = Callable[[str], Changes]


def _path(value: str) -> Changes:
    """%HOST is the name of this machine. A last part with %DATE is what RHEL calls the folder of one crash; each crash
    has a folder of its own in any case."""
    path = absolute_path(value, "path")
    unknown = re.search(r"%(?!HOST|DATE)[A-Za-z]+", path)
    if unknown is not None:
        raise ValueError(f"'{unknown[0]}' in path is not known; %HOST and %DATE are")
    folder, _, last = path.rpartition("/")
    if "%DATE" in folder:
        raise ValueError("%DATE may stand in the last part of path only: each crash has a folder with its time anyway")
    if "%DATE" in last:
        path = folder or "/"
    return {"path": path.replace("%HOST", host_label(os.uname().nodename))}


def _core_collector(value: str) -> Changes:
    if value.split()[0] == "external":
        return {"dump": external_collector(value.split()[1:])}
    if value.split()[0].rpartition("/")[2] in _COPIERS:
        return {"dump": DumpSettings(levels=(0,), elf=True)}
    options = parse_core_collector(value)
    if options.problems:
        raise ValueError("; ".join(options.problems))
    return {"dump": options.dump}


def _field(name: str, read: Callable[[str], object]) -> Reader:
    return lambda value: {name: read(value)}


def _compress(value: str) -> Changes:
    codec_text, *rest = value.split()
    codec = choice(Compression, codec_text, "a way to pack pages")
    level: int | None = None
    if rest and rest != ["auto"]:
        if codec not in COMPRESSION_LEVELS:
            raise ValueError(f"{codec} has no levels; zstd and zlib do")
        low, high = COMPRESSION_LEVELS[codec]
        if len(rest) != 1 or not re.fullmatch(r"-?[0-9]{1,3}", rest[0]) or not low <= int(rest[0]) <= high:
            raise ValueError(f"'{' '.join(rest)}' is not a level of {codec}; use auto or a number from {low} to {high}")
        level = int(rest[0])
    return {"dump.compression": codec, "dump.compression_level": level}


def _levels(value: str) -> Changes:
    levels = value.replace(",", " ").split()
    if not levels or not all(re.fullmatch(r"[0-9]{1,2}", level) and int(level) <= MAX_LEVEL for level in levels):
        raise ValueError(f"'{value}' is not a dump level from 0 to {MAX_LEVEL}, or several of them: 1,17,31")
    return {"dump.levels": tuple(map(int, levels))}


def _threads(value: str) -> Changes:
    return {"dump.threads": None if value == "auto" else whole_number(value, 1, MAX_THREADS, "threads")}


def _keep_free(value: str) -> Changes:
    size, percent = size_or_percent(value)
    return {"dump.keep_free_bytes": size, "dump.keep_free_percent": percent}


def _force_rebuild(value: str) -> Changes:
    """What it asks for happens anyway: an image is built anew whenever anything in it has changed."""
    switch(value)
    return {}


def _extra_bins(value: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(absolute_path(word, "a program") for word in value.split()))


def _fence_nodes(value: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(map(host_name, value.split())))


def _fence_args(value: str) -> tuple[str, ...]:
    """Those of fence_kdump_send(8) that a message to the nodes can have."""
    number = r"[0-9]{1,5}"
    option = rf"(-[pci] ?|--(ipport|count|interval)[= ]){number}|(-f ?|--family[= ])(auto|ipv4|ipv6)|-v|--verbose"
    if not re.fullmatch(rf"({option})( ({option}))*", " ".join(value.split())):
        raise ValueError(
            f"'{value}' are not arguments of fence_kdump_send: -p PORT, -f FAMILY, -c COUNT, -i SECONDS, -v"
        )
    return tuple(value.split())


def _program(name: str) -> Reader:
    return _field(name, lambda text: one_path(text, "the program to run"))


def _deadline(field: str, low: int, high: int) -> Reader:
    return _field(f"deadlines.{field}_sec", lambda text: seconds(text, low, high))


_DAY = 24 * 3600
# With these RHEL copies the memory as it is: here that is an ELF core with all pages in it.
_COPIERS = frozenset({"cp", "scp", "dd"})
# RHEL 6 mounted the root filesystem and went on booting, to save the dump from there.
_OLD_ACTIONS = {"mount_root_run_init": Action.DUMP_TO_ROOTFS.value}
# A ValueError's text is the complaint.
READERS: Mapping[str, Reader] = {
    "path": _path,
    "sshkey": _field("sshkey", lambda text: absolute_path(text, "the file of the key")),
    "core_collector": _core_collector,
    "compress": _compress,
    "level": _levels,
    "threads": _threads,
    "keep_free": _keep_free,
    "layout": _field("layout", lambda text: choice(Layout, text, "a layout")),
    "keep_crashes": _field("keep_crashes", lambda text: whole_number(text, 1, 10_000, "crashes")),
    "keep_days": _field("keep_days", lambda text: whole_number(text, 1, 36_500, "days")),
    "final_action": _field("final_action", lambda text: choice(FINAL_ACTIONS, text, "an action")),
    "failure_action": _field("failure_action", lambda text: choice(Action, _OLD_ACTIONS.get(text, text), "an action")),
    "encrypt_to": _field("encrypt_to", recipient_keys),
    "force_rebuild": _force_rebuild,
    "force_no_rebuild": _field("force_no_rebuild", switch),
    "fence_kdump_nodes": _field("fence_nodes", _fence_nodes),
    "fence_kdump_args": _field("fence_args", _fence_args),
    "kdump_pre": _program("kdump_pre"),
    "kdump_post": _program("kdump_post"),
    "kdump_emergency": _program("kdump_emergency"),
    "extra_bins": _field("extra_bins", _extra_bins),
    "extra_modules": _field(
        "extra_modules", lambda text: words(text, r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", "the name of a kernel module")
    ),
    "deadline_total": _deadline("total", 60, _DAY),
    "deadline_target": _deadline("target", 10, _DAY),
    "deadline_network": _deadline("network", 5, 3600),
    "deadline_stall": _deadline("stall", 30, 3600),
    "deadline_hook": _deadline("hook", 1, 3600),
    "shell_timeout": _deadline("shell", 0, _DAY),
    "on_unload": _field("on_unload", lambda text: choice(OnUnload, text, "a thing to do")),
    **{name: _field(name, read) for name, read in {**loading.READERS, **building.READERS}.items()},
}
# Each line adds to those before.
REPEATED = frozenset({"encrypt_to"})
# Old names of RHEL's.
ALIASES = {"default": "failure_action"}
# Directives of RHEL's language that change nothing in how this version captures: a note, not an error.
WITHOUT_EFFECT = frozenset({"auto_reset_crashkernel"})
OBSOLETE = frozenset({"options", "link_delay", "disk_timeout", "debug_mem_level", "blacklist"})
