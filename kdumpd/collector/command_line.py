# SPDX-License-Identifier: GPL-2.0-or-later
"""The command line of kdumpd-collect: options in, one of the verbs out. Each verb is imported when it is asked for."""

from __future__ import annotations

import importlib
import textwrap

import kdumpd
from kdumpd.collector.verbs.console import NAME, Console
from kdumpd.config.core_collector import OPTIONS, CollectorOptions, Verb
from kdumpd.errors import UsageError

# The module of kdumpd.collector.verbs and its function for each verb.
_VERBS = {
    Verb.DUMP: ("dump", "dump"),
    Verb.DMESG: ("log", "log"),
    Verb.PARTIAL_DMESG: ("log", "log"),
    Verb.MEM_USAGE: ("memusage", "mem_usage"),
    Verb.SPLIT: ("split", "split"),
    Verb.REASSEMBLE: ("reassemble", "reassemble"),
    Verb.REARRANGE: ("rearrange", "rearrange"),
    Verb.VERIFY: ("verify", "verify"),
}

_USAGE = f"""\
{NAME} [OPTION...] VMCORE OUT               write a dump of the memory in VMCORE
{NAME} -F [OPTION...] VMCORE [OUT]          write it as a stream
{NAME} --split [OPTION...] VMCORE OUT...    write it in several files
{NAME} --reassemble DUMP... OUT             make one dump of these
{NAME} -R OUT <STREAM                       make a dump of a stream
{NAME} --dump-dmesg VMCORE [OUT]            write the kernel log
{NAME} --mem-usage VMCORE                   count the pages by class
{NAME} --verify DUMP...                     check dumps"""


def run(options: CollectorOptions, console: Console) -> int:
    """Does what `options` say; the exit status. Raises KdumpError."""
    if options.verb is Verb.HELP:
        print(help_text())
        return 0
    if options.verb is Verb.VERSION:
        print(f"{NAME} {kdumpd.__version__}")
        return 0
    if options.problems:
        raise UsageError("; ".join(options.problems), hint=f"{NAME} --help")
    for sentence in options.without_effect:
        console.note(sentence)
    if options.verb is Verb.CHECK:
        return 0
    module, function = _VERBS[options.verb]
    verb = getattr(importlib.import_module(f"kdumpd.collector.verbs.{module}"), function)
    status: int = verb(options, console)
    return status


def help_text() -> str:
    """What --help shows."""
    lines = [_USAGE, "", "Options:"]
    for option in OPTIONS:
        if option.help:
            names = ", ".join(option.names) + (f" {option.value}" if option.value else "")
            text = textwrap.wrap(option.help, 78)
            first = f"  {names:32}" if len(names) <= 31 else f"  {names}\n{'':34}"
            lines.append(first + f"\n{'':34}".join(text))
    lines += ["", "VMCORE is /proc/vmcore, a copy of it, a dump, or a core file by QEMU. See kdumpd-collect(8)."]
    return "\n".join(lines)
