# SPDX-License-Identifier: GPL-2.0-or-later
"""--mem-usage: how the memory of a running kernel (/proc/kcore), or of any VMCORE, is used."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from kdumpd.collector.dump import page_counts
from kdumpd.collector.order import Waiting, batches
from kdumpd.collector.source import Source
from kdumpd.collector.verbs import stats
from kdumpd.collector.verbs.console import Console
from kdumpd.collector.verbs.dump import open_source
from kdumpd.config.core_collector import CollectorOptions, Messages
from kdumpd.dumpfile.packing import zero_pages
from kdumpd.errors import UsageError, VmcoreError
from kdumpd.vmcore.classify import Classification
from kdumpd.vmcore.rules import Level

_AT_ONCE = 2 << 20  # bytes of pages
_ALL = int(Level.ZERO | Level.CACHE | Level.CACHE_PRIVATE | Level.USER | Level.FREE)


def mem_usage(options: CollectorOptions, console: Console) -> int:
    """Shows a line for each class of pages. Raises VmcoreError when the pages cannot be told apart."""
    if len(options.operands) != 1:
        raise UsageError(f"{len(options.operands)} file names were given; VMCORE is needed",
                         hint="kdumpd-collect --mem-usage /proc/kcore")  # fmt: skip
    path = Path(options.operands[0])
    with open_source(options, path, console) as source:
        found = source.classify(_ALL)
        console.notes(source.notes)
        if not any(found.counts.values()):
            raise VmcoreError(f"the pages of {path} cannot be told apart")
        counts = page_counts(found)
        counts["zero"] = _zero(source, found)
        facts = {"result": "complete", "kernel": source.info.release, "pages": counts,
                 "page_size": source.core.page_size, "notes": list(dict.fromkeys(source.notes))}  # fmt: skip
        if options.json:
            console.result("", facts)
        else:
            console.table(stats.table(counts))
            if console.wants(Messages.REPORT):
                console.table(f"{counts['kept'] - counts['zero']} pages would be in a dump of level {_ALL}")
    return 0


def _zero(source: Source, found: Classification) -> int:
    """Kept pages that hold nothing. A page that cannot be read is none of them."""
    zero = 0
    count = _AT_ONCE // source.core.page_size
    pages = np.empty((count, source.core.page_size), dtype=np.uint8)
    for pfns in batches(Waiting(found.kept.copy()).take_all(), count):
        bad = source.core.read_pages(pfns, pages[: len(pfns)])
        zero += int(np.count_nonzero(zero_pages(pages[: len(pfns)]))) - len(bad)
    return zero
