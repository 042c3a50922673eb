# SPDX-License-Identifier: GPL-2.0-or-later
"""--reassemble: the parts of --split, ours or makedumpfile's, become one dump again."""

from __future__ import annotations

import contextlib
from pathlib import Path

from kdumpd.collector.progress import size_text
from kdumpd.collector.verbs.console import Console
from kdumpd.collector.verbs.output import Output
from kdumpd.config.core_collector import CollectorOptions
from kdumpd.dumpfile.check import verify_dump
from kdumpd.dumpfile.reader import DiskdumpReader
from kdumpd.dumpfile.reassemble import check_parts, join
from kdumpd.errors import UsageError


def reassemble(options: CollectorOptions, console: Console) -> int:
    """Writes OUT. Parts may be named in any order, but none may be missing."""
    if len(options.operands) < 3:
        raise UsageError("--reassemble needs at least two dumps and OUT",
                         hint="kdumpd-collect --reassemble DUMP DUMP OUT")  # fmt: skip
    *names, last = map(Path, options.operands)
    with contextlib.ExitStack() as stack:
        readers = [stack.enter_context(DiskdumpReader(name)) for name in names]
        ordered = check_parts(readers)
        output = stack.enter_context(Output(last, force=options.force, sources=tuple(names)))
        output.only_if_complete(*join(ordered, output.file))
        if options.dump.verify:
            verify_dump(output.partial)
        output.file.close()
        output.commit()
    size = last.stat().st_size
    line = f"{last}: {size_text(size)} from {len(names)} parts"
    console.result(line, {"result": "complete", "out": str(last), "size_bytes": size, "parts": len(names)})
    return 0
