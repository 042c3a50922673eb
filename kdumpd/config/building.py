# SPDX-License-Identifier: GPL-2.0-or-later
"""The directives of kdump.conf that say how the capture image is made: text to fields of Config."""

from __future__ import annotations

import shlex
from collections.abc import Callable

from kdumpd.config.model import Builder
from kdumpd.config.values import choice

# Of dracut's options: what would make it write other images than ours, or read other settings than kdumpd gives it.
_REFUSED = frozenset({
    "--regenerate-all", "--rebuild", "--uefi", "--conf", "-c", "--confdir", "--tmpdir", "--sysroot", "-r", "--kver",
    "--kmoddir", "-k", "--print-cmdline", "--list-modules", "--help", "-h", "--strip", "--aggressive-strip",
})  # fmt: skip


def _dracut_args(value: str) -> tuple[str, ...]:
    """Quotes are read as a shell reads them (RHEL's kdump.conf(5)), and nothing else: no shell sees this."""
    try:
        words = tuple(shlex.split(value))
    except ValueError:
        raise ValueError("dracut_args has a quote that does not end") from None
    for word in words:
        if word.partition("=")[0] in _REFUSED:
            raise ValueError(f"'{word}' cannot be given to dracut here")
    return words


# Directive, which is also the field of Config: its reader. A ValueError's text is the complaint.
READERS: dict[str, Callable[[str], object]] = {
    "builder": lambda value: choice(Builder, value, "a builder"),
    "dracut_args": _dracut_args,
}
