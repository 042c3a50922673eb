# SPDX-License-Identifier: GPL-2.0-or-later
"""--split: one dump in several files, each with an equal part of the pages.

Each file has the headers and bitmaps of the whole, so any of them says what there was; the parts that are there are
what crash(8) reads when it is given them all.
"""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

import numpy as np

from kdumpd.collector.dump import PHASES, Outcome, check_dump, write_plan
from kdumpd.collector.fit import Plan
from kdumpd.collector.options import DumpOptions
from kdumpd.collector.progress import size_text
from kdumpd.collector.source import Source
from kdumpd.collector.verbs.console import Console
from kdumpd.collector.verbs.dump import facts, incomplete, open_source
from kdumpd.collector.verbs.output import Output
from kdumpd.config.core_collector import CollectorOptions
from kdumpd.dumpfile.ranks import Bytes, Ranks
from kdumpd.errors import UsageError
from kdumpd.vmcore.arrays import ints

_MOST_PARTS = 1024


def split(options: CollectorOptions, console: Console) -> int:
    """Writes all OUTs, one after the other. None gets its name before all of them are whole."""
    names = options.operands[1:]
    if len(names) < 2:
        raise UsageError("--split needs VMCORE and at least two OUTs", hint="kdumpd-collect --split VMCORE OUT OUT")
    if len(names) > _MOST_PARTS or len(set(names)) < len(names):
        raise UsageError(f"--split takes up to {_MOST_PARTS} OUTs, each another file")
    if options.dump.elf or options.dump.flattened:
        raise UsageError("--split writes kdump-compressed dumps only, without -E and -F")
    vmcore = Path(options.operands[0])
    began = time.monotonic()
    with contextlib.ExitStack() as stack:
        source = stack.enter_context(open_source(options, vmcore, console))
        outputs = [stack.enter_context(Output(Path(name), force=options.force, sources=(vmcore,))) for name in names]
        outcomes = _write(source, outputs, options, console)
        for output in outputs:
            output.file.close()
        for output in outputs:
            output.commit()
    for output, outcome in zip(outputs, outcomes, strict=True):
        line = f"{output.out}: {size_text(outcome.size_bytes)}, {outcome.pages['written']} pages"
        console.result(line, {**facts(source, outcome, options), "result": "complete", "out": str(output.out),
                              "seconds": time.monotonic() - began})  # fmt: skip
    return 0


def _write(source: Source, outputs: list[Output], options: CollectorOptions, console: Console) -> list[Outcome]:
    wanted = DumpOptions.of(options.dump)
    level = wanted.levels[0]
    found = source.classify(level)
    outcomes = []
    try:
        for output, part in zip(outputs, parts(found.kept, source.core.max_pfn, len(outputs)), strict=True):
            outcome, progress = Outcome(), console.progress(PHASES)
            # Pages that were written are cleared in the bitmap.
            plan = Plan(level=level, found=found, kept=found.kept.copy(), shortage=None)
            write_plan(source, plan, output.file, outcome, wanted, progress, part)
            output.only_if_complete(*incomplete(source))
            check_dump(output.partial, source, outcome, wanted, progress)
            outcomes.append(outcome)
    finally:
        console.notes((*source.notes, *(note for outcome in outcomes for note in outcome.notes)))
    return outcomes


def parts(kept: Bytes, end: int, count: int) -> list[tuple[int, int]]:
    """`count` ranges of page frames that follow each other up to `end`, with as many pages of `kept` each."""
    ranks = Ranks.of_array(kept)
    inner = [ranks.count * index // count for index in range(1, count)]
    cuts = ints(ranks.select(np.array(inner, dtype=np.int64))) if ranks.count else [0] * len(inner)
    return list(zip([0, *cuts], [*cuts, end], strict=True))
