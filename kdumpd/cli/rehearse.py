# SPDX-License-Identifier: GPL-2.0-or-later
"""kdumpctl rehearse: has the pair that is loaded, or would be, crash and capture in a scratch machine.

It runs here and not in the service, which may start no such thing; the service sees the record.
"""

from __future__ import annotations

import hashlib
import os
import signal
import sys
from argparse import Namespace
from pathlib import Path

from kdumpd.cli import output
from kdumpd.errors import DeniedError, KdumpError, NotArmedError, os_reason
from kdumpd.host.kernels import find_kernel
from kdumpd.host.machine import now_usec
from kdumpd.image import read_record
from kdumpd.rehearsal.first_system import Pair, read_bytes
from kdumpd.rehearsal.rehearse import Outcome, Wanted, rehearse
from kdumpd.service.estimate import mib
from kdumpd.service.look import look_facts
from kdumpd.service.model import Facts, LastRehearsal, Rung
from kdumpd.service.places import Places
from kdumpd.service.rehearsed import LOG_NAME, write_rehearsal
from kdumpd.service.state import decide

_STALE = (Rung.IMAGE_MISSING, Rung.IMAGE_STALE, Rung.LOADED_STALE)


def run(options: Namespace) -> int:
    """0 only when the dump of the scratch machine is complete and passed its checks. Raises KdumpError."""
    if os.geteuid() != 0:
        raise DeniedError("Only root may read the image that is to be rehearsed", hint="use sudo")
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    os.umask(0o077)
    places = Places.below(options.root)
    facts = look_facts(options.root, question="What would be rehearsed", hint="use sudo")
    wanted, began = _wanted(facts, places), now_usec()
    log = places.state_dir / LOG_NAME
    outcome = rehearse(wanted, log, accel=options.accel, progress=_progress)
    record = _record(wanted, outcome, began)
    try:
        write_rehearsal(places.state_dir, record)
    except OSError as error:
        raise KdumpError(f"The rehearsal cannot be noted in {places.state_dir}: {os_reason(error)}") from error
    if options.json != "off":
        output.print_json(record.known(), options.json)
    if outcome.problem is not None:
        raise KdumpError(f"No good dump came of the rehearsal: {outcome.problem}", hint=f"its console: {log}")
    if options.json == "off":
        _tell(outcome)
    return 0


def _wanted(facts: Facts, places: Places) -> Wanted:
    """The pair that is loaded, or would be loaded now. Raises KdumpError where that is nothing to rehearse."""
    state = decide(facts)
    if facts.kernel_trouble is not None or facts.target_trouble is not None:
        trouble = facts.kernel_trouble or facts.target_trouble
        assert trouble is not None
        raise NotArmedError(trouble.sentence, hint=trouble.hint or None)
    if not facts.image.usable or facts.image.stale is not None or state.rung in _STALE:
        reason = next((reason for reason in state.reasons if reason.code != "loaded-by-other"), None)
        raise NotArmedError(
            "There is no image to rehearse" if reason is None else reason.sentence,
            hint=(reason.cure if reason is not None else "") or "kdumpctl rebuild",
        )
    loaded = facts.loaded if facts.crash_loaded else None
    kernel = find_kernel(facts.machine.release, places.root)
    folder = facts.image.path.parent
    record = read_record(folder)
    pair = Pair(
        release=kernel.release,
        kernel=read_bytes(kernel.image if loaded is None else Path(loaded.kernel), "kernel"),
        initrd=read_bytes(facts.image.path if loaded is None else Path(loaded.initrd), "image"),
        cmdline=facts.cmdline if loaded is None else loaded.cmdline,
        modules=record.modules,
    )
    if hashlib.sha256(pair.initrd).hexdigest() != record.packed_sha256:
        raise NotArmedError("The image on disk is not the one that its record describes", hint="kdumpctl rebuild")
    return Wanted(
        arch=facts.machine.arch,
        kernel=kernel,
        pair=pair,
        capture=record.capture,
        image_id=record.image_id,
        reserved_bytes=facts.reserved_bytes,
        root=places.root,
    )


def _record(wanted: Wanted, outcome: Outcome, began_usec: int) -> LastRehearsal:
    return LastRehearsal(
        release=wanted.pair.release,
        image_id=wanted.image_id,
        initrd_sha256=hashlib.sha256(wanted.pair.initrd).hexdigest(),
        kernel_sha256=hashlib.sha256(wanted.pair.kernel).hexdigest(),
        cmdline=wanted.pair.cmdline,
        time_usec=began_usec,
        seconds=outcome.seconds,
        accel=outcome.accel,
        problem=outcome.problem or "",
        exchanged=outcome.exchanged,
        reserved_bytes=wanted.reserved_bytes,
        dump_bytes=outcome.dump_bytes,
        lowest_available_bytes=outcome.lowest_available_bytes,
    )


def _progress(phase: str) -> None:
    print(f"{phase} ...", file=sys.stderr, flush=True)


def _tell(outcome: Outcome) -> None:
    text = (
        f"A scratch machine crashed with this very kernel and image, and delivered a complete dump of"
        f" {mib(outcome.dump_bytes, up=True)} after {outcome.seconds:.0f} s;"
        f" {mib(outcome.lowest_available_bytes)} of its reservation were free at the tightest moment."
    )
    print(output.wrap(text, 0))
    if outcome.exchanged:
        print("Not as in this machine:")
        for part in outcome.exchanged:
            print("  " + output.wrap(f"- {part}", 4, begins=2))
