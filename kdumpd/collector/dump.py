# SPDX-License-Identifier: GPL-2.0-or-later
"""From an open vmcore to a dump in a sink: classify, fit, lay out, copy, finish."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from kdumpd.collector.copy import MAX_WORKERS, Copied, Copier
from kdumpd.collector.fit import Plan, fitting_plan
from kdumpd.collector.options import DumpOptions
from kdumpd.collector.order import Waiting
from kdumpd.collector.progress import Progress, peak_rss, size_text
from kdumpd.collector.room import room_for_bitmaps
from kdumpd.collector.sample import AUTO_LEVELS, SampledPages, best_level
from kdumpd.collector.source import Source
from kdumpd.dumpfile.check import verify_dump
from kdumpd.dumpfile.codecs import FAST
from kdumpd.dumpfile.diskdump import Codec
from kdumpd.dumpfile.manifest import Region, Step
from kdumpd.dumpfile.sink import PageWriter, Sink
from kdumpd.dumpfile.stored import Stored
from kdumpd.dumpfile.writer import DiskdumpWriter
from kdumpd.errors import KdumpError, NoSpaceError
from kdumpd.vmcore.classify import Classification
from kdumpd.vmcore.memory import PAGE_SIZE, fill_range

# The phases that `write_dump` and `check_dump` announce.
PHASES = 5
_MAX_NAMED_PFNS = 16
_CLASSES = {
    "free": "free",
    "unaccepted": "never accepted",
    "cache": "cache",
    "cache_private": "cache with private data",
    "user": "user data",
    "hwpoison": "broken",
    "offline": "offline",
}
_ENOUGH_TO_MEASURE = 1 << 20


@dataclasses.dataclass(slots=True, kw_only=True)
class Outcome:
    """What became of the dump, kept up to date so that a failure leaves it true.

    `page_size` is that of `pages` in bytes, `level` and `compression_level` are those taken in the end, `timings_sec`
    what each part of the work took, `unreadable` the pfns that were saved as zeros, `workers_bytes` the memory of
    processes that packed pages.
    """

    pages: dict[str, int] = dataclasses.field(default_factory=dict)
    size_bytes: int = 0
    level: int | None = None
    compression_level: int | None = None
    page_size: int = PAGE_SIZE
    regions: tuple[Region, ...] = ()
    unreadable: frozenset[int] = frozenset()
    workers_bytes: int = 0
    notes: list[str] = dataclasses.field(default_factory=list)
    timings_sec: dict[str, float] = dataclasses.field(default_factory=dict)

    def peak_memory(self) -> int | None:
        """The most memory that the collector had, in bytes, with that of the processes that packed pages."""
        peak = peak_rss()
        return None if peak is None else peak + self.workers_bytes

    @contextlib.contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Measures a part of the work."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.timings_sec[part] = round(time.monotonic() - began, 3)


def write_dump(source: Source, sink: Sink, outcome: Outcome, options: DumpOptions, progress: Progress) -> None:
    """Writes the whole dump and waits until it is on stable storage. `outcome` tells how far it came.

    Raises KdumpError, NoSpaceError where the target holds less than was asked for; what was written by then can be
    read up to the last descriptor that found room.
    """
    source.new_bitmap = room_for_bitmaps(sink, source.core.max_pfn, source.notes)
    progress.phase(f"choosing pages (level {options.levels[0]})")
    with outcome.timed("choose"):
        plan = fitting_plan(source, sink, options)
    write_plan(source, plan, sink, outcome, options, progress)


def write_plan(
    source: Source,
    plan: Plan,
    sink: Sink,
    outcome: Outcome,
    options: DumpOptions,
    progress: Progress,
    part: tuple[int, int] | None = None,
) -> None:
    """As write_dump, for pages that were chosen already; with a `part`, for those in [start, end) alone."""
    found = plan.found
    outcome.level = plan.level
    outcome.page_size = source.core.page_size
    outcome.pages = page_counts(found)

    progress.phase("writing what is needed first")
    try:
        writer = _writer(source, plan, sink, options, part)
    except NoSpaceError as error:
        source.steps.append(Step("log-only", f"not even the headers of a dump fit: {error.sentence}"))
        raise
    try:
        _copy(source, plan, writer, outcome, options, progress, part)
        progress.phase("making it durable")
        with outcome.timed("finish"):
            # What is made of an incomplete dump is no more complete than that.
            outcome.regions = writer.finish(complete=plan.shortage is None and not source.core.incomplete)
    except BaseException:
        # Whatever stopped the copy: the descriptors of what was written make it readable.
        with contextlib.suppress(KdumpError):
            writer.checkpoint()
        raise
    finally:
        outcome.size_bytes = writer.size
        outcome.pages["written"] = writer.written
    if plan.shortage is not None:
        raise NoSpaceError(plan.shortage)


def page_counts(found: Classification) -> dict[str, int]:
    """The counts of a classification by the names that manifest.json has for them."""
    counts = {"total": found.total, "kept": found.kept_count}
    return counts | {page_class.name.lower(): count for page_class, count in found.counts.items()}


def summary(size_bytes: int, pages: Mapping[str, int], seconds: float, page_size: int = PAGE_SIZE) -> str:
    """How big, how long, what was left out: for the last line that a person sees."""
    left_out = [f"{size_text(pages[name] * page_size)} {words}" for name, words in _CLASSES.items() if pages.get(name)]
    lost = f", {pages['unreadable']} that could not be read are zero" if pages.get("unreadable") else ""
    return (
        f"{size_text(size_bytes)} in {seconds:.1f} s, {pages.get('kept', 0)} of {pages.get('total', 0)} pages kept"
        f" ({pages.get('zero', 0)} of them zero{lost}), left out: {', '.join(left_out) or 'nothing'}"
    )


def check_dump(
    place: Path | Stored, source: Source, outcome: Outcome, options: DumpOptions, progress: Progress
) -> None:
    """Opens the dump that was written as a reader would, and compares some pages with those of `source`; nothing if
    `options` do not want that. Raises DumpFormatError."""
    if not options.verify:
        return
    progress.phase("checking what was written")
    with outcome.timed("verify"):
        outcome.pages["verified"] = verify_dump(
            place, memory=source.core, needed=source.needed, unreadable=outcome.unreadable
        )


def _writer(source: Source, plan: Plan, sink: Sink, options: DumpOptions, part: tuple[int, int] | None) -> PageWriter:
    origin = source.origin()
    if options.elf:
        from kdumpd.dumpfile.elfdump import ElfWriter

        elf = ElfWriter(
            sink,
            machine=source.core.machine,
            segments=source.segments(),
            notes=origin.notes,
            kept=plan.kept,
            page_size=source.core.page_size,
        )
        if elf.filled:
            source.notes.append(f"{elf.filled} pages that were left out lie in short holes and read as zeros")
        return elf
    return DiskdumpWriter(
        sink,
        origin,
        codec=options.codec,
        level=plan.level,
        block_size=source.core.page_size,
        max_mapnr=source.core.max_pfn,
        present=plan.found.present,
        kept=plan.kept,
        checksums=options.checksums,
        part=part,
    )


def _copy(
    source: Source,
    plan: Plan,
    writer: PageWriter,
    outcome: Outcome,
    options: DumpOptions,
    progress: Progress,
    part: tuple[int, int] | None,
) -> None:
    """What opens the dump and what is asked for first, then slab, then the rest."""
    waiting = Waiting(plan.kept)
    if part is not None:
        fill_range(waiting.bits, 0, part[0], present=False)
        fill_range(waiting.bits, part[1], len(waiting.bits) * 8, present=False)
    copied = Copied()

    def step() -> None:
        progress.step(writer.written, writer.count, writer.written * source.core.page_size, writer.size)

    outcome.compression_level = level = options.compression_level
    copier = Copier(source.core, writer, codec=options.codec, threads=options.threads, step=step, copied=copied)
    try:
        with copier:
            with outcome.timed("critical"):
                for stage in source.stages():
                    copier.copy([waiting.take(stage.pfns)], level)
                copier.flush()
                writer.checkpoint()
            if level is None and options.codec is Codec.ZSTD:
                with outcome.timed("measure"):
                    outcome.compression_level = level = _level_for(source, plan, writer, options.threads)
            progress.phase("writing the rest")
            with outcome.timed("slab"):
                copier.copy(waiting.take_marked(plan.found.slab), level)
            with outcome.timed("rest"):
                copier.copy(waiting.take_all(), level)
                copier.flush()
    finally:
        outcome.unreadable = frozenset(copied.unreadable)
        outcome.workers_bytes = copied.workers_bytes
        outcome.pages.update(zero=copied.zero, unreadable=len(copied.unreadable))
        if copied.workers_lost:
            outcome.notes.append(f"{copied.workers_lost} processes that packed pages ended; others did their work")
        if copied.unreadable:
            named = ", ".join(f"{pfn:#x}" for pfn in copied.unreadable[:_MAX_NAMED_PFNS])
            more = "" if len(copied.unreadable) <= _MAX_NAMED_PFNS else ", ..."
            outcome.notes.append(f"pages that could not be read were saved as zeros: pfn {named}{more}")


def _level_for(source: Source, plan: Plan, writer: PageWriter, threads: int) -> int:
    """The level of zstd for the rest, by how fast the target took the first part and how fast pages are packed."""
    if plan.tight or writer.write_seconds <= 0 or writer.data_size < _ENOUGH_TO_MEASURE:
        return FAST
    pages = SampledPages(source.core, plan.kept)  # what is left of them
    if not pages.count:
        return FAST
    return best_level(
        {level: pages.packed(Codec.ZSTD, level) for level in AUTO_LEVELS},
        bytes_per_second=writer.data_size / writer.write_seconds,
        threads=min(threads, MAX_WORKERS),
    )
