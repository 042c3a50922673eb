# SPDX-License-Identifier: GPL-2.0-or-later
"""--dump-dmesg, --partial-dmesg: the kernel log of VMCORE as text."""

from __future__ import annotations

import sys
from pathlib import Path

from kdumpd.collector.verbs.console import Console
from kdumpd.collector.verbs.dump import open_source
from kdumpd.collector.verbs.output import Output
from kdumpd.config.core_collector import CollectorOptions, Verb
from kdumpd.errors import UsageError, VmcoreError


def log(options: CollectorOptions, console: Console) -> int:
    """Writes the log to OUT; to standard output where there is none."""
    vmcore, *outs = options.operands or ("",)
    if not vmcore or len(outs) > 1:
        raise UsageError(f"{len(options.operands)} file names were given; VMCORE and OUT are needed")
    to_stdout = not outs or outs == ["-"]
    console.stdout_is_taken = to_stdout
    with open_source(options, Path(vmcore), console) as source:
        lines = source.log_lines(since_clear=options.verb is Verb.PARTIAL_DMESG)
        console.notes(source.notes)
        if not lines and options.verb is Verb.DMESG:
            raise VmcoreError(f"{vmcore} has no log that can be read")
        text = "".join(f"{line}\n" for line in lines)
        facts = {"result": "complete", "lines": len(lines), "notes": list(dict.fromkeys(source.notes))}
        if to_stdout and options.encrypt_to:
            raise UsageError("an encrypted log is not written to standard output", hint="give OUT")
        if to_stdout:
            sys.stdout.write(text)
            sys.stdout.flush()
            return 0
        out = Path(outs[0])
        with Output(out, force=options.force, sources=(Path(vmcore),)) as output:
            if options.encrypt_to:
                from kdumpd.dumpfile.sealed_sink import seal_data

                seal_data(output.file, options.encrypt_to, text.encode())
            else:
                output.file.write_at(0, text.encode())
                output.file.sync()
        output.commit()
        console.result(f"{out}: {len(lines)} lines", {**facts, "out": str(out), "size_bytes": len(text.encode())})
    return 0
