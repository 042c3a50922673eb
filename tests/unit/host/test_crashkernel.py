# SPDX-License-Identifier: GPL-2.0-or-later
"""kdumpd.host.crashkernel: the grammar, and what a kernel makes of it."""

from __future__ import annotations

import random

import pytest

from kdumpd.host.crashkernel import Kind, parse_crashkernel, parse_entry, parse_size, reserved_expectation

M, G = 1 << 20, 1 << 30


@pytest.mark.parametrize(
    ("text", "size"),
    [("256M", 256 * M), ("0x10000000", 256 * M), ("1g", G), ("010", 8), ("4096", 4096), ("2T", 2 << 40), ("0", 0)],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "M", "-1", "256MB", "1.5G", "0xM", "٣M", " 1M"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ValueError, match="is not a size"):
        parse_size(text)


@pytest.mark.parametrize(
    ("cmdline", "memory", "reserved"),
    [
        ("crashkernel=256M", 4 * G, 256 * M),
        ("crashkernel=256M@16M", 4 * G, 256 * M),
        ("crashkernel=512M-:192M", 2 * G, 192 * M),
        ("crashkernel=512M-:192M", 256 * M, 0),
        ("crashkernel=2G-4G:320M,4G-32G:512M,32G-:1G", 3 * G, 320 * M),
        ("crashkernel=2G-4G:320M,4G-32G:512M,32G-:1G", 4 * G, 512 * M),
        ("crashkernel=2G-4G:320M,4G-32G:512M,32G-:1G@64M", 64 * G, G),
        # memory is rounded up to 128M: firmware keeps a little of each 4G
        ("crashkernel=4G-:512M", 4 * G - 50 * M, 512 * M),
        ("crashkernel=512M,high crashkernel=128M,low", 8 * G, 512 * M),
        ("crashkernel=512M,high", 8 * G, 512 * M),
        # a plain entry makes the others void, wherever it stands
        ("crashkernel=256M crashkernel=512M,high", 8 * G, 256 * M),
        ("crashkernel=64M crashkernel=256M", 4 * G, 256 * M),
        ("crashkernel=256M crashkernel=1G,cma", 4 * G, 256 * M),
    ],
)
def test_what_gets_reserved(cmdline: str, memory: int, reserved: int) -> None:
    assert reserved_expectation(parse_crashkernel(f"root=/dev/sda1 {cmdline} quiet"), memory).size_bytes == reserved


@pytest.mark.parametrize(
    ("cmdline", "words"),
    [
        ("", "no crashkernel=SIZE"),
        ("crashkernel=1G,cma", "no crashkernel=SIZE"),
        ("crashkernel=128M,low", "no crashkernel=SIZE"),
        ("crashkernel=auto", "cannot read"),
        ("crashkernel=256M,foo", "cannot read"),
        ("crashkernel=4G-2G:256M", "ends before it starts"),
        ("crashkernel=2G:256M", "START-"),
        ("crashkernel=0", "asks for nothing"),
        ("crashkernel=8G-:256M", "asks for nothing"),
        ("crashkernel=8G", "as much as the machine has"),
        ("crashkernel=512M,high crashkernel=junk,low", ",low"),
        # the last one counts, also when it is junk
        ("crashkernel=256M crashkernel=lots", "cannot read"),
    ],
)
def test_why_nothing_gets_reserved(cmdline: str, words: str) -> None:
    expected = reserved_expectation(parse_crashkernel(cmdline), 4 * G)
    assert expected.size_bytes == 0
    assert expected.problem is not None
    assert words in expected.problem


def test_the_last_of_each_class_counts() -> None:
    found = parse_crashkernel("crashkernel=1M,high crashkernel=2M,low crashkernel=3M,high crashkernel=4M,cma")
    assert found.plain is None
    assert [entry.size_bytes for entry in (found.high, found.low, found.cma) if entry] == [3 * M, 2 * M, 4 * M]
    assert found.asked


def test_what_stands_behind_two_dashes_is_not_for_the_kernel() -> None:
    assert not parse_crashkernel("quiet -- crashkernel=256M").asked


def test_no_text_makes_it_fail() -> None:
    pick = random.Random(1)
    for _ in range(3000):
        text = "".join(pick.choice('0123456789xMGKkT-:,@highlowcma "=') for _ in range(pick.randrange(30)))
        entry = parse_entry(text)
        assert entry.kind in Kind
        reserved_expectation(parse_crashkernel(f"crashkernel={text}"), 4 * G)
