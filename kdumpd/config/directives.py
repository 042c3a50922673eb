# SPDX-License-Identifier: GPL-2.0-or-later
"""Every directive of kdump.conf but the targets: its name, and what its value changes in `Config`.

Fields of `DumpSettings` are written "dump.field". What a target looks like is in `target_lines`, what a kernel command
line may hold in `loading`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from kdumpd.config import loading
from kdumpd.config.age_keys import recipient_keys
from kdumpd.config.core_collector import parse_core_collector
from kdumpd.config.model import Action, OnUnload
from kdumpd.config.values import absolute_path, choice

Changes = dict[str, object]
Reader = Callable[[str], Changes]


def _core_collector(value: str) -> Changes:
    options = parse_core_collector(value)
    if options.problems:
        raise ValueError("; ".join(options.problems))
    return {"dump": options.dump}


def _field(name: str, read: Callable[[str], object]) -> Reader:
    return lambda value: {name: read(value)}


# A ValueError's text is the complaint.
READERS: Mapping[str, Reader] = {
    "path": _field("path", lambda text: absolute_path(text, "path")),
    "sshkey": _field("sshkey", lambda text: absolute_path(text, "the file of the key")),
    "core_collector": _core_collector,
    "final_action": _field("final_action", lambda text: choice(Action, text, "an action")),
    "failure_action": _field("failure_action", lambda text: choice(Action, text, "an action")),
    "encrypt_to": _field("encrypt_to", recipient_keys),
    "on_unload": _field("on_unload", lambda text: choice(OnUnload, text, "a thing to do")),
    **{name: _field(name, read) for name, read in loading.READERS.items()},
}
# Each line adds to those before.
REPEATED = frozenset({"encrypt_to"})
# Old names of RHEL's.
ALIASES = {"default": "failure_action"}
# Directives of RHEL's language that change nothing in how this version captures: a note, not an error.
WITHOUT_EFFECT = frozenset({
    "extra_modules", "force_rebuild", "force_no_rebuild", "dracut_args", "auto_reset_crashkernel", "fence_kdump_args",
})  # fmt: skip
# Those whose loss somebody would notice only after the crash: refused, rather than left out in silence.
UNAVAILABLE = frozenset({"kdump_pre", "kdump_post", "kdump_emergency", "extra_bins", "fence_kdump_nodes"})
OBSOLETE = frozenset({"options", "link_delay", "disk_timeout", "debug_mem_level", "blacklist"})
