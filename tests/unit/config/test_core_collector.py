# SPDX-License-Identifier: GPL-2.0-or-later
"""The options of makedumpfile(8): what each means, and a sentence for what is none."""

from __future__ import annotations

import dataclasses
import shlex

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdumpd.config.core_collector import (
    OPTIONS,
    CollectorOptions,
    Messages,
    Verb,
    parse_core_collector,
    parse_words,
)
from kdumpd.config.model import Compression, DumpSettings


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("", CollectorOptions()),
        ("in out", CollectorOptions(operands=("in", "out"))),
        ("-d 31 -l in out", CollectorOptions(dump=DumpSettings(levels=(31,), compression=Compression.LZO),
                                             operands=("in", "out"))),
        ("in -cd17 out", CollectorOptions(dump=DumpSettings(levels=(17,), compression=Compression.ZLIB),
                                          operands=("in", "out"))),
        ("-d31,17,1", CollectorOptions(dump=DumpSettings(levels=(31, 17, 1)))),
        ("--dump-level=8 -p", CollectorOptions(dump=DumpSettings(levels=(8,), compression=Compression.SNAPPY))),
        ("-z --compression-level 3", CollectorOptions(
            dump=DumpSettings(compression=Compression.ZSTD, compression_level=3))),
        ("-z --compression-level=auto", CollectorOptions(dump=DumpSettings(compression=Compression.ZSTD))),
        ("-EF", CollectorOptions(dump=DumpSettings(elf=True, flattened=True))),
        ("--num-threads 4", CollectorOptions(dump=DumpSettings(threads=4))),
        ("--num 0", CollectorOptions(dump=DumpSettings(threads=0))),
        ("--no-checksums --no-verify", CollectorOptions(dump=DumpSettings(checksums=False, verify=False))),
        ("--message-level 31", CollectorOptions(messages=Messages(31))),
        ("--split in a b c", CollectorOptions(verb=Verb.SPLIT, operands=("in", "a", "b", "c"))),
        ("--reassemble a b out", CollectorOptions(verb=Verb.REASSEMBLE, operands=("a", "b", "out"))),
        ("-R out", CollectorOptions(verb=Verb.REARRANGE, operands=("out",))),
        ("--dump-dmesg in -", CollectorOptions(verb=Verb.DMESG, operands=("in", "-"))),
        ("--partial-dmesg in out -f", CollectorOptions(verb=Verb.PARTIAL_DMESG, force=True, operands=("in", "out"))),
        ("--mem-usage /proc/kcore", CollectorOptions(verb=Verb.MEM_USAGE, operands=("/proc/kcore",))),
        ("-x vmlinux in out", CollectorOptions(vmlinux="vmlinux", operands=("in", "out"))),
        ("--dry-run --show-stats --json in", CollectorOptions(dry_run=True, show_stats=True, json=True,
                                                              operands=("in",))),
        ("-f -- -d out", CollectorOptions(force=True, operands=("-d", "out"))),
        ("-v", CollectorOptions(verb=Verb.VERSION)),
        ("-h", CollectorOptions(verb=Verb.HELP)),
    ],
)  # fmt: skip
def test_command_lines(line: str, expected: CollectorOptions) -> None:
    assert parse_words(shlex.split(line)) == expected


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("-d 32", "dump level '32' is not a number from 0 to 31, or several with commas"),
        ("-d -1", "dump level '-1' is not a number from 0 to 31, or several with commas"),
        ("-d 1,,2", "dump level '1,,2' is not a number from 0 to 31, or several with commas"),
        ("-d", "option '-d' needs a value: LEVEL[,LEVEL...]"),
        ("-cd", "option '-d' needs a value: LEVEL[,LEVEL...]"),
        ("--num-threads", "option '--num-threads' needs a value: N"),
        ("--num-threads=x", "number of threads 'x' is not a number from 0 to 1024"),
        ("--message-level 32", "message level '32' is not a number from 0 to 31"),
        ("-z -c", "options '-z' and '-c' exclude each other"),
        ("-z --dump-dmesg --mem-usage", "options '--dump-dmesg' and '--mem-usage' exclude each other"),
        ("-q", "option '-q' is not known"),
        ("-cq", "option '-q' is not known (in '-cq')"),
        ("--frobnicate", "option '--frobnicate' is not known"),
        ("--dump", "option '--dump' is ambiguous: --dump-level, --dump-dmesg"),
        ("--force=yes", "option '--force' takes no value, 'yes' was given"),
        ("-c --compression-level 10", "compression level '10' of zlib is not a number from 1 to 9"),
        ("-l --compression-level 1", "'lzo' has no compression levels; -z and -c do"),
        ("--compression-level fast -z", "compression level 'fast' is not a number from -50 to 19"),
        ("-E -z", "option '-E' excludes '-z': ELF files are not packed"),
        ("-e", "option '-e' is not available: crash(8) needs the memory map even of the pages that are left out"),
        ("--xen-syms x", "option '--xen-syms' is not available: Xen's memory is not read"),
        ("--vtop 0xff", "option '--vtop' is not available: crash(8) does it: 'vtop ADDRESS'"),
    ],
)
def test_problems(line: str, problem: str) -> None:
    assert parse_words(shlex.split(line)).problems == (problem,)


def test_what_changes_nothing_is_said() -> None:
    found = parse_words(["-b", "8", "-D", "--cyclic-buffer=1024", "in", "out"])
    assert [each.split("'")[1] for each in found.without_effect] == ["-b", "-D", "--cyclic-buffer"]
    assert (found.problems, found.operands) == ((), ("in", "out"))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("makedumpfile -l --message-level 7 -d 31", DumpSettings(levels=(31,), compression=Compression.LZO)),
        ("makedumpfile -F -c -d 31",
         DumpSettings(levels=(31,), compression=Compression.ZLIB, flattened=True)),
        ("/usr/sbin/makedumpfile -E -d 31 --num-threads=2", DumpSettings(levels=(31,), elf=True, threads=2)),
        ("kdumpd-collect -z -d 31,1", DumpSettings(levels=(31, 1), compression=Compression.ZSTD)),
        ("makedumpfile", DumpSettings()),
    ],
)  # fmt: skip
def test_core_collector(value: str, expected: DumpSettings) -> None:
    found = parse_core_collector(value)
    assert (found.dump, found.problems) == (expected, ())


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("", "core_collector '' is not available"),
        ("scp", "core_collector 'scp' is not available"),
        ("makedumpfile --split", "option '--split' has no place in kdump.conf"),
        ("makedumpfile -x /boot/vmlinux", "option '-x' has no place in kdump.conf"),
        ("makedumpfile -d 31 /proc/vmcore", "core_collector has the word '/proc/vmcore', which is no option"),
        ("makedumpfile -d 31; rm -rf /", "dump level '31;'"),
        ("makedumpfile --eppic x", "option '--eppic' is not available"),
    ],
)
def test_core_collector_refuses(value: str, problem: str) -> None:
    assert any(each.startswith(problem) for each in parse_core_collector(value).problems)


WORDS = st.lists(
    st.one_of(
        st.sampled_from([name for option in OPTIONS for name in option.names]),
        st.from_regex(r"\A--?[a-zA-Z-]{0,12}(=[ -~]{0,4})?\Z"),
        st.text(max_size=8),
    ),
    max_size=8,
)


@settings(max_examples=400)
@given(WORDS)
def test_any_words_are_options_or_sentences(words: list[str]) -> None:
    for found in (parse_words(words), parse_core_collector("makedumpfile " + " ".join(words))):
        assert all(0 <= level <= 31 for level in found.dump.levels)
        assert all(problem for problem in found.problems)
        assert DumpSettings.from_dict(dataclasses.asdict(found.dump)) == found.dump


@settings(max_examples=200)
@given(st.permutations(["-d", "-z", "--num-threads", "-f", "in"]), st.integers(0, 31))
def test_the_order_of_options_does_not_matter(order: list[str], level: int) -> None:
    values = {"-d": [str(level)], "--num-threads": ["3"]}
    found = parse_words([word for name in order for word in [name, *values.get(name, [])]])
    assert found == CollectorOptions(
        dump=DumpSettings(levels=(level,), compression=Compression.ZSTD, threads=3), force=True, operands=("in",)
    )


def test_no_name_is_given_twice() -> None:
    names = [name for option in OPTIONS for name in option.names]
    assert len(names) == len(set(names))
    assert all(option.help or option.why_not or option.no_effect for option in OPTIONS)
