# SPDX-License-Identifier: GPL-2.0-or-later
"""kdumpd-collect: a filtered, compressed dump from a vmcore, as a command.

The word `capture` runs the whole capture from the settings in the image, as the supervisor orders, `fence` tells a
cluster of it; everything else is a command line like makedumpfile's (collector.command_line).
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from kdumpd.collector.lean import without_unused_parts
from kdumpd.collector.progress import available_memory
from kdumpd.collector.scarce import spare_memory
from kdumpd.config.streams import have_streams
from kdumpd.errors import KdumpError, os_reason

_INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status: 0 the dump is complete, 1 it is not, 2 the command line is wrong.

    Without `arguments` it is the whole process, with those of its command line, and ends it.
    """
    if arguments is None:
        _whole_process()
    words = list(arguments)
    if words[:1] == ["capture"]:
        from kdumpd.collector.capture import Places, capture
        from kdumpd.collector.supervised import parse_orders

        return capture(Places(), parse_orders(words[1:]))
    if words[:1] == ["fence"]:
        from kdumpd.collector.fence import announce

        return announce()
    return _command(words)


def _whole_process() -> NoReturn:
    have_streams()
    without_unused_parts()
    spare_memory(available_memory())
    status = main(sys.argv[1:])
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError as error:
            if status == 0:
                status = 1
                with contextlib.suppress(OSError):
                    print(f"kdumpd-collect: {_output_failed(error)}", file=sys.stderr, flush=True)
    # Everything is written and closed. Taking numpy and the interpreter apart would take 15 ms more.
    os._exit(status)


def _output_failed(error: OSError) -> str:
    return f"{error.filename or 'the output'}: {os_reason(error)}"


def _command(words: list[str]) -> int:
    from kdumpd.collector.command_line import run
    from kdumpd.collector.verbs.console import Console
    from kdumpd.config.core_collector import Messages, parse_words

    options = parse_words(words)
    console = Console(options)
    try:
        return run(options, console)
    except KeyboardInterrupt:
        console.failure(KdumpError("interrupted"), {})
        return _INTERRUPTED
    except KdumpError as error:
        from kdumpd.collector.verbs.output import IncompleteError

        console.failure(error, {"result": "incomplete"} if isinstance(error, IncompleteError) else {})
        return error.exit_code
    except MemoryError:
        console.failure(KdumpError("out of memory"), {})
    except OSError as error:
        with contextlib.suppress(OSError):  # which --json would be told by the same output
            console.failure(KdumpError(_output_failed(error)), {})
    except Exception as error:  # whoever wants a dump is not helped by a traceback
        if console.wants(Messages.DEBUG):
            raise
        hint = "--message-level 15 shows where; please report it"
        console.failure(KdumpError(f"a fault of kdumpd: {error!r}", hint=hint), {})
    return 1


if __name__ == "__main__":
    main()
