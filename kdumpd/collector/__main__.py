# SPDX-License-Identifier: GPL-2.0-or-later
"""kdumpd-collect: a filtered, compressed dump from a vmcore, as a command.

`kdumpd-collect [-d LEVEL] [-z|-c] VMCORE OUT` writes a dump, `--dump-dmesg` the log alone, and the single word
`capture` runs the whole capture from the settings in the image.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import kdumpd
from kdumpd.config.model import Compression
from kdumpd.errors import KdumpError, NoSpaceError, TargetError, UsageError, os_reason

_INCOMPLETE_SUFFIX = ".incomplete"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(message, hint="kdumpd-collect --help")


def _level(text: str) -> int:
    if not text.isdecimal() or not 0 <= int(text) <= 31:
        raise UsageError(f"dump level '{text}' is not a number from 0 to 31")
    return int(text)


def _threads(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 1024:
        raise UsageError(f"'{text}' is not a number of threads from 1 to 1024")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="kdumpd-collect",
        description="Write a filtered, compressed dump of the memory in VMCORE to OUT.",
        epilog="LEVEL is the sum of: 1 zero pages, 2 cache, 4 cache with private data, 8 user data, 16 free pages. "
        "See kdumpd-collect(8).",
    )
    parser.add_argument("-d", "--dump-level", metavar="LEVEL", type=_level, default=0, help="leave out pages")
    codec = parser.add_mutually_exclusive_group()
    codec.add_argument("-z", "--zstd", dest="compression", action="store_const", const=Compression.ZSTD)
    codec.add_argument("-c", "--zlib", dest="compression", action="store_const", const=Compression.ZLIB)
    parser.add_argument("-f", "--force", action="store_true", help="replace OUT")
    parser.add_argument("--num-threads", metavar="N", type=_threads, help="threads that compress (default: one a cpu)")
    parser.add_argument("--dump-dmesg", action="store_true", help="write the kernel log instead of a dump")
    parser.add_argument("--version", action="version", version=f"kdumpd-collect {kdumpd.__version__}")
    parser.add_argument("vmcore", metavar="VMCORE", type=Path)
    parser.add_argument("out", metavar="OUT", type=Path)
    return parser


def _collect(arguments: argparse.Namespace) -> None:
    from kdumpd.collector.dump import Outcome, write_dump
    from kdumpd.collector.options import CODECS, DumpOptions
    from kdumpd.collector.progress import Progress, size_text
    from kdumpd.collector.source import Source
    from kdumpd.dumpfile.reader import verify
    from kdumpd.targets.files import OutputFile

    out: Path = arguments.out
    if os.path.lexists(out) and not arguments.force:
        raise UsageError(f"{out} exists", hint="give another name, or -f to replace it")
    partial = out.with_name(out.name + _INCOMPLETE_SUFFIX)
    source = Source.open(arguments.vmcore)
    with source.core:
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            if arguments.force:
                partial.unlink(missing_ok=True)
            file = OutputFile(os.open(partial, flags, 0o600), str(partial))
        except FileExistsError:
            raise UsageError(f"{partial} exists", hint="remove it if no dump is being written there") from None
        except OSError as error:
            raise TargetError(f"{partial} cannot be made: {os_reason(error)}") from error
        with file:
            if arguments.dump_dmesg:
                lines = source.log_lines()
                if not lines:
                    partial.unlink()
                    raise KdumpError(f"{arguments.vmcore} has no log that can be read: {'; '.join(source.notes)}")
                file.write_at(0, ("\n".join(lines) + "\n").encode())
                file.sync()
                message = f"{len(lines)} lines"
            else:
                outcome = Outcome()
                options = DumpOptions(
                    levels=(arguments.dump_level,),
                    codec=CODECS[arguments.compression or Compression.NONE],
                    threads=arguments.num_threads or len(os.sched_getaffinity(0)),
                )
                progress = Progress(3, stream=sys.stderr)
                try:
                    write_dump(source, file, outcome, options, progress)
                except NoSpaceError as error:
                    raise NoSpaceError(
                        f"{error.sentence}; {partial} holds {outcome.pages.get('written', 0)} of "
                        f"{outcome.pages.get('kept', 0)} pages",
                        hint="crash opens what is there with --zero_excluded",
                    ) from error
                for note in (*source.notes, *outcome.notes):
                    print(f"kdumpd-collect: {note}", file=sys.stderr)
                verify(partial)
                message = (
                    f"{size_text(outcome.size_bytes)}, {outcome.pages['kept']} of {outcome.pages['total']} pages kept, "
                    f"{outcome.pages['zero']} of them zero"
                )
    try:
        partial.rename(out)
        parent = os.open(out.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(parent)
        finally:
            os.close(parent)
    except OSError as error:
        raise TargetError(f"{partial} cannot be renamed to {out}: {os_reason(error)}") from error
    print(f"{out}: {message}")


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status: 0 the dump is complete, 1 it is not, 2 the command line is wrong."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    try:
        if words == ["capture"]:
            from kdumpd.collector.capture import Places, capture

            return capture(Places())
        _collect(_parser().parse_args(words))
    except KdumpError as error:
        print(f"kdumpd-collect: {error.sentence}", file=sys.stderr)
        if error.hint is not None:
            print(f"kdumpd-collect: {error.hint}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("kdumpd-collect: interrupted", file=sys.stderr)
        return 1
    except MemoryError:
        print("kdumpd-collect: out of memory", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
