# SPDX-License-Identifier: GPL-2.0-or-later
"""From an open vmcore to a dump in a sink: classify, lay out, copy, finish."""

from __future__ import annotations

import contextlib
import dataclasses

from kdumpd.collector.copy import Copier
from kdumpd.collector.options import DumpOptions
from kdumpd.collector.order import Waiting
from kdumpd.collector.progress import Progress
from kdumpd.collector.source import Source
from kdumpd.dumpfile.manifest import Region
from kdumpd.dumpfile.sink import Sink
from kdumpd.dumpfile.writer import DiskdumpWriter
from kdumpd.errors import KdumpError
from kdumpd.vmcore.classify import Classification
from kdumpd.vmcore.memory import PAGE_SIZE

_MAX_NAMED_PFNS = 16


@dataclasses.dataclass(slots=True, kw_only=True)
class Outcome:
    """What became of the dump, kept up to date so that a failure leaves it true."""

    pages: dict[str, int] = dataclasses.field(default_factory=dict)
    size_bytes: int = 0
    regions: tuple[Region, ...] = ()
    notes: list[str] = dataclasses.field(default_factory=list)


def write_dump(source: Source, sink: Sink, outcome: Outcome, options: DumpOptions, progress: Progress) -> None:
    """Writes the whole dump and waits until it is on stable storage. `outcome` tells how far it came.

    Raises KdumpError; what was written by then can be read up to the last descriptor that found room.
    """
    level = options.levels[0]
    progress.phase(f"choosing pages (level {level})")
    found = source.classify(level)
    outcome.pages = {"total": found.total, "kept": found.kept_count}
    outcome.pages.update({page_class.name.lower(): count for page_class, count in found.counts.items()})

    progress.phase("writing pages")
    writer = DiskdumpWriter(
        sink,
        source.origin(),
        codec=options.codec,
        level=level,
        max_mapnr=source.core.max_pfn,
        present=found.present,
        kept=found.kept,
        checksums=options.checksums,
    )
    copier = Copier(
        source.core,
        writer,
        codec=options.codec,
        level=options.compression_level,
        threads=options.threads,
        step=lambda: progress.step(writer.written, found.kept_count, writer.written * PAGE_SIZE, writer.size),
    )
    try:
        with copier:
            _copy_in_order(source, found, writer, copier)
        progress.phase("making it durable")
        outcome.regions = writer.finish()
    except BaseException:
        # Whatever stopped the copy: the descriptors of what was written make it readable.
        with contextlib.suppress(KdumpError):
            writer.checkpoint()
        raise
    finally:
        writer.close()
        outcome.size_bytes = writer.size
        outcome.pages.update(written=writer.written, zero=copier.zero, unreadable=len(copier.unreadable))
        if copier.unreadable:
            named = ", ".join(f"{pfn:#x}" for pfn in copier.unreadable[:_MAX_NAMED_PFNS])
            more = "" if len(copier.unreadable) <= _MAX_NAMED_PFNS else ", ..."
            outcome.notes.append(f"pages that could not be read were saved as zeros: pfn {named}{more}")


def _copy_in_order(source: Source, found: Classification, writer: DiskdumpWriter, copier: Copier) -> None:
    """What opens the dump and what is asked for first, then slab, then the rest."""
    waiting = Waiting(found.kept.copy())
    for stage in source.stages():
        copier.copy([waiting.take(stage.pfns)])
    writer.checkpoint()
    copier.copy(waiting.take_marked(found.slab))
    copier.copy(waiting.take_all())
