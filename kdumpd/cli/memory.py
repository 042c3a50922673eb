# SPDX-License-Identifier: GPL-2.0-or-later
"""kdumpctl estimate, showmem, get-default-crashkernel, reset-crashkernel, reservation: the memory of a capture.

Reads the machine itself; the service is not needed for it. The boot loader is changed only when asked, and what
changes is printed.
"""

from __future__ import annotations

import dataclasses
import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kdumpd.cli import output
from kdumpd.errors import KdumpError, UsageError
from kdumpd.host import bootloader
from kdumpd.host.cmdline import read_cmdline
from kdumpd.host.crashkernel import parse_crashkernel, reserved_expectation
from kdumpd.host.nextboot import crashkernel_words, read_next_boot
from kdumpd.host.reservation import read_memory_bytes, read_reservation
from kdumpd.service.estimate import mib, recommended_bytes
from kdumpd.service.look import look_facts

_LEAST_BYTES = 16 << 20  # what is less was meant in other units


def estimate(options: Namespace) -> int:
    """The sum that decides whether the reservation is large enough. Raises DeniedError."""
    facts = look_facts(options.root, question="What a capture needs", hint="use sudo")
    capture = facts.around.last_capture
    measured = {} if capture is None else capture.measured()
    margin = facts.reserved_bytes - facts.required_bytes
    recommended = recommended_bytes(facts.required_bytes)
    if options.json != "off":
        sizes = {
            "terms": [{"name": name, "size_bytes": size} for name, size in facts.need.terms()],
            "required_bytes": facts.required_bytes,
            "reserved_bytes": facts.reserved_bytes,
            "margin_bytes": margin,
            "recommended_bytes": recommended,
            "image_known": facts.image.usable,
            "measured": measured,
        }
        output.print_json(sizes, options.json)
        return 0
    rows = [(mib(size, up=True), name) for name, size in facts.need.terms()]
    rows.append((mib(facts.required_bytes, up=True), "needed in all"))
    rows.append((mib(facts.reserved_bytes), "reserved by this boot"))
    rows.append((mib(abs(margin)), "to spare" if margin >= 0 else "MISSING"))
    rows.append((mib(recommended), "recommended: kdumpctl reset-crashkernel"))
    for size, name in rows:
        print(f"{size:>9}  {name}")
    if not facts.image.usable:
        print(output.wrap("No capture image was built yet: its size is a guess.", 0))
    if measured:
        print(output.wrap(_measured(measured), 0))
    return 0


def _measured(sizes: Mapping[str, int]) -> str:
    words = {
        "peak_rss_bytes": "the collector had {} at most, programs in the image among it",
        "lowest_available_bytes": "{} were free at the tightest moment",
    }
    found = [text.format(mib(sizes[name])) for name, text in words.items() if name in sizes]
    return f"Measured in the last capture: {'; '.join(found)}."


def showmem(options: Namespace) -> int:
    """Size and place of what the running kernel set aside."""
    reservation = read_reservation(options.root)
    memory = read_memory_bytes(options.root)
    ranges = [{"start": part.start, "size_bytes": part.size_bytes} for part in reservation.ranges]
    if options.json != "off":
        output.print_json(
            {"reserved_bytes": reservation.size_bytes, "memory_bytes": memory, "ranges": ranges}, options.json
        )
        return 0
    print(f"{mib(reservation.size_bytes)} of {mib(memory)} are reserved for a capture kernel.")
    for part in reservation.ranges:
        print(f"  {part.start:#014x}-{part.last:#014x}  {mib(part.size_bytes)}")
    if reservation.size_bytes and not reservation.ranges:
        print("  The kernel shows the addresses only to root.")
    return 0


def default_crashkernel(options: Namespace) -> int:
    """The value alone, for scripts, as RHEL's kdumpctl prints it."""
    value = _default(options.root)
    if options.json != "off":
        output.print_json({"crashkernel": value}, options.json)
    else:
        print(value)
    return 0


def reset(options: Namespace) -> int:
    """`reservation set` with the default. Raises KdumpError."""
    return _set([_default(options.root)], options)


def reservation(options: Namespace) -> int:
    """`show` and `set`. Raises KdumpError."""
    return _set(options.size, options) if options.action == "set" else _show(options)


def _default(root: Path) -> str:
    facts = look_facts(root, question="What a capture needs", hint="use sudo")
    return f"{recommended_bytes(facts.required_bytes) >> 20}M"


def _show(options: Namespace) -> int:
    root: Path = options.root
    running = read_cmdline(root)
    reserved = read_reservation(root).size_bytes
    following = read_next_boot(root, running)
    try:
        loader, settings, trouble = bootloader.find_loader(root).value, bootloader.read_settings(root), None
    except KdumpError as error:
        loader, settings, trouble = None, (), str(error)
    if options.json != "off":
        facts = {
            "crashkernel": crashkernel_words(running),
            "reserved_bytes": reserved,
            "next_boot": list(following.crashkernels),
            "next_boot_files": list(following.files),
            "boot_loader": loader,
            "configured": [dataclasses.asdict(setting) for setting in settings],
            "problem": trouble,
        }
        output.print_json(facts, options.json)
        return 0
    pairs = [("This boot", _words(crashkernel_words(running))), ("Reserved", mib(reserved))]
    pairs += [("Next boot", f"{_words(value)} ({', '.join(following.files)})") for value in following.crashkernels]
    pairs.append(("Boot loader", loader or str(trouble)))
    pairs += [("Configured", str(setting)) for setting in settings]
    output.print_pairs(pairs, wrapped=True)
    return 0


def _words(crashkernel: str) -> str:
    return f"crashkernel={crashkernel}" if crashkernel else "no crashkernel="


def _parameters(values: Sequence[str]) -> str:
    """As they stand on the kernel's command line."""
    return " ".join(f"crashkernel={value}" for value in values)


def _set(values: Sequence[str], options: Namespace) -> int:
    change = bootloader.plan_change(values, options.root)
    _refuse_nothing(change.values, options.root)
    if change.edits and not options.dry_run:
        bootloader.apply_change(change, options.root)
        _check(change, options.root)
    if options.json != "off":
        output.print_json(_facts(change, applied=not options.dry_run), options.json)
        return 0
    words = _parameters(change.values)
    for setting in change.kept:
        print(output.wrap(f"{setting} stays there; the kernel takes the last one, which is ours.", 2, begins=0))
    if not change.edits:
        print(f"The next boot has {words} already.")
        return 0
    print(change.diff(), end="")
    for command in change.commands:
        print(f"{'would run' if options.dry_run else 'ran'}: {' '.join(command)}")
    print("Nothing was changed." if options.dry_run else f"From the next boot on: {words}")
    return 0


def _refuse_nothing(values: Sequence[str], root: Path) -> None:
    """Of what no kernel reserves here, the next boot would have no capture kernel. Ranges may be meant for another
    machine, on which this system will run: that is said and done. Raises UsageError."""
    words = _parameters(values)
    request = parse_crashkernel(words)
    has_ranges = request.main is not None and bool(request.main.ranges)
    memory_bytes = read_memory_bytes(root)
    expected = reserved_expectation(request, memory_bytes)
    if 0 < expected.size_bytes < _LEAST_BYTES:
        least = f"{expected.size_bytes} bytes, which is too little for any kernel"
        raise UsageError(f"crashkernel={' '.join(values)} is {least}", hint="for example: 256M")
    problem = expected.problem
    if problem is None or (has_ranges and not memory_bytes):
        return
    if has_ranges:
        print(output.wrap(f"The kernel reserves nothing for {words}: {problem}.", 2, begins=0), file=sys.stderr)
        return
    raise UsageError(f"the kernel would reserve nothing for {words}: {problem}", hint="see: kdumpctl estimate")


def _check(change: bootloader.Change, root: Path) -> None:
    """Whether the entries of the next boot have it now, where they can be read. Raises KdumpError."""
    following = read_next_boot(root, read_cmdline(root))
    wanted = crashkernel_words(_parameters(change.values))
    others = [_words(value) for value in following.crashkernels if value != wanted]
    if others:
        raise KdumpError(
            f"crashkernel={wanted} was set, but {' and '.join(following.files)} has entries with {', '.join(others)}",
            hint="see: kdumpctl reservation show",
        )


def _facts(change: bootloader.Change, *, applied: bool) -> dict[str, Any]:
    return {
        "boot_loader": change.loader.value,
        "crashkernel": list(change.values),
        "diff": change.diff(),
        "commands": [list(command) for command in change.commands],
        "kept": [dataclasses.asdict(setting) for setting in change.kept],
        "applied": applied and bool(change.edits),
    }
