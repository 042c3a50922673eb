# SPDX-License-Identifier: GPL-2.0-or-later
"""VMCORE to OUT: a dump in any of the formats, or what it would be (--dry-run)."""

from __future__ import annotations

import dataclasses
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from kdumpd.collector.dump import PHASES, Outcome, check_dump, page_counts, summary, write_dump
from kdumpd.collector.options import DumpOptions
from kdumpd.collector.progress import Progress, size_text
from kdumpd.collector.source import Source
from kdumpd.collector.verbs import stats
from kdumpd.collector.verbs.console import Console
from kdumpd.collector.verbs.output import IncompleteError, Output
from kdumpd.config.core_collector import CollectorOptions, Messages
from kdumpd.dumpfile.flattened import FlattenedSink
from kdumpd.dumpfile.sink import Sink
from kdumpd.dumpfile.stored import open_stored
from kdumpd.errors import NoSpaceError, UsageError
from kdumpd.targets.stream import OutputStream

_STDOUT_FD = 1


def dump(options: CollectorOptions, console: Console) -> int:
    """Writes the dump that `options` ask for."""
    if options.dry_run:
        return _dry_run(options, console)
    streamed = options.dump.flattened or options.encrypt_to
    if streamed and (len(options.operands) == 1 or options.operands[1:] == ("-",)):
        return _to_stdout(options, console)
    if len(options.operands) != 2:
        raise UsageError(f"{_count(options)}; VMCORE and OUT are needed", hint="kdumpd-collect --help")
    vmcore, out = map(Path, options.operands)
    began = time.monotonic()
    outcome = Outcome()
    with open_source(options, vmcore, console) as source:
        with Output(out, force=options.force, sources=(vmcore,)) as output:
            stream = None
            if streamed:
                stream = _stream(OutputStream(output.file.fileno(), str(out)), options, output.file.free_bytes)
            try:
                progress = _write(source, stream or output.file, outcome, options, console)
            except NoSpaceError as error:
                raise _no_space(error, output.partial, outcome, options) from error
            output.only_if_complete(*incomplete(source))
            written = open_stored(output.partial, None if stream is None else stream.find_key)
            check_dump(written, source, outcome, DumpOptions.of(options.dump), progress)
        output.commit()
        _tell(source, str(out), outcome, options, console, time.monotonic() - began)
    return 0


def open_source(options: CollectorOptions, vmcore: Path, console: Console) -> Source:
    """Opens `vmcore`, and says at once what is odd about it."""
    source = Source.open(vmcore, None if options.vmlinux is None else Path(options.vmlinux))
    console.debug(
        f"{vmcore}: {type(source.core).__name__} of {source.core.machine}, kernel {source.info.release}, "
        f"{len(source.core.extents)} ranges of pages below {source.core.max_pfn:#x}"
    )
    return source


def _stream(
    stream: OutputStream, options: CollectorOptions, free_bytes: Callable[[], int | None] = lambda: None
) -> FlattenedSink:
    if options.encrypt_to:
        from kdumpd.dumpfile.sealed_sink import SealedSink

        return SealedSink(stream, options.encrypt_to, free_bytes=free_bytes)
    return FlattenedSink(stream)


def _write(source: Source, sink: Sink, outcome: Outcome, options: CollectorOptions, console: Console) -> Progress:
    progress = console.progress(PHASES)
    try:
        write_dump(source, sink, outcome, DumpOptions.of(options.dump), progress)
        if isinstance(sink, FlattenedSink):
            # Without its end a stream says of itself that it is incomplete.
            end = sink.leave if source.core.incomplete else sink.end
            end()
        return progress
    except BaseException:
        if isinstance(sink, FlattenedSink):
            sink.leave()
        raise
    finally:
        console.notes((*source.notes, *(step.reason for step in source.steps), *outcome.notes))


def incomplete(source: Source) -> list[str]:
    """The name of what was read, if it is not whole."""
    return [str(source.core.path)] if source.core.incomplete else []


def _no_space(error: NoSpaceError, partial: Path, outcome: Outcome, options: CollectorOptions) -> NoSpaceError:
    left = f"{partial} holds {outcome.pages.get('written', 0)} of {outcome.pages.get('kept', 0)} pages"
    hint = "crash opens what is there with --zero_excluded"
    if options.encrypt_to:
        hint = f"kdumpctl decrypt {partial} makes a dump of what is there"
    elif options.dump.flattened:
        hint = f"kdumpd-collect -R OUT <{partial} makes a dump of what is there"
    return NoSpaceError(f"{error.sentence}; {left}", hint=hint)


def _to_stdout(options: CollectorOptions, console: Console) -> int:
    console.stdout_is_taken = True
    if os.isatty(_STDOUT_FD):
        raise UsageError("standard output is a terminal", hint="send the stream into a file or a program")
    if sys.__stdout__ is None:
        raise UsageError("standard output is closed", hint="send the stream into a file or a program")
    vmcore = Path(options.operands[0])
    began = time.monotonic()
    outcome = Outcome()
    with open_source(options, vmcore, console) as source:
        sys.stdout.flush()
        sink = _stream(OutputStream(_STDOUT_FD, "standard output"), options)
        _write(source, sink, outcome, options, console)
        if source.core.incomplete:
            raise IncompleteError(f"{vmcore} is incomplete, and what was made of it says so")
        _tell(source, "standard output", outcome, options, console, time.monotonic() - began)
    return 0


def _tell(
    source: Source, out: str, outcome: Outcome, options: CollectorOptions, console: Console, seconds: float
) -> None:
    if options.show_stats or console.wants(Messages.REPORT):
        console.table(stats.table(outcome.pages))
    line = f"{out}: {summary(outcome.size_bytes, outcome.pages, seconds, outcome.page_size)}"
    console.result(line, {**facts(source, outcome, options), "result": "complete", "out": out, "seconds": seconds})


def facts(source: Source, outcome: Outcome, options: CollectorOptions) -> dict[str, object]:
    """What --json says of a dump."""
    return {
        "kernel": source.info.release,
        "machine": source.core.machine,
        "level": options.dump.levels[0] if outcome.level is None else outcome.level,
        "compression": str(options.dump.compression),
        "compression_level": outcome.compression_level,
        "size_bytes": outcome.size_bytes,
        "encrypted_to": list(options.encrypt_to),
        "pages": outcome.pages,
        "page_size": outcome.page_size,
        "timings_sec": outcome.timings_sec,
        "peak_rss_bytes": outcome.peak_memory(),
        "steps": [dataclasses.asdict(step) for step in source.steps],
        "notes": list(dict.fromkeys((*source.notes, *outcome.notes))),
    }


def _dry_run(options: CollectorOptions, console: Console) -> int:
    if len(options.operands) not in (1, 2):
        raise UsageError(f"{_count(options)}; VMCORE is needed", hint="kdumpd-collect --help")
    outcome = Outcome()
    level = options.dump.levels[0]
    with open_source(options, Path(options.operands[0]), console) as source:
        found = source.classify(level)
        outcome.pages, outcome.page_size = page_counts(found), source.core.page_size
        console.notes(source.notes)
        if options.show_stats or console.wants(Messages.REPORT):
            console.table(stats.table(outcome.pages))
        line = (
            f"level {level} keeps {found.kept_count} of {found.total} pages, "
            f"{size_text(found.kept_count * source.core.page_size)} before they are packed; nothing was written"
        )
        console.result(line, {**facts(source, outcome, options), "result": "dry-run"})
    return 0


def _count(options: CollectorOptions) -> str:
    return f"{len(options.operands)} file names were given" if len(options.operands) != 1 else "one file name was given"
