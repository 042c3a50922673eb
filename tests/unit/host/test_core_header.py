# SPDX-License-Identifier: GPL-2.0-or-later
"""kdumpd.host.core_header: a header that a capture kernel can read is told from one that it cannot."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdumpd.host.core_header import ProgramHeader, header_problems, parse_complaints, parse_guesses, parse_headers
from kdumpd.host.reservation import MemoryRange, parse_iomem

# What kexec-tools 2.0.25 said on Debian's 6.1 with 1 GiB and crashkernel=256M, without the lines about relocations.
GOOD = """\
kernel: 0x7fb9c667b010 kernel_size: 0xd877c0
MEMORY RANGES
0000000000000000-000000000009fbff (0)
get_backup_area: 0000000000001000-000000000009fbff : System RAM
CRASH MEMORY RANGES
0000000000001000-000000000009fbff (0)
kernel vaddr = 0xffffffff9a800000 size = 0x2830000
Created backup segment at 0x3ef61000
get_crash_notes_per_cpu: crash_notes addr = 2de39400, size = 368
Elf header: p_type = 4, p_offset = 0x2de39400 p_paddr = 0x2de39400 p_vaddr = 0x0 p_filesz = 0x170 p_memsz = 0x170
vmcoreinfo header: p_type = 4, p_offset = 0x11dc000 p_paddr = 0x11dc000 p_vaddr = 0x0 p_filesz = 0x1024 p_memsz = 0x1024
Kernel text Elf header: p_type = 1, p_offset = 0x28600000 p_paddr = 0x28600000 p_vaddr = 0xffffffff9a800000 \
p_filesz = 0x2830000 p_memsz = 0x2830000
Elf header: p_type = 1, p_offset = 0x3ef61000 p_paddr = 0x1000 p_vaddr = 0xff43428680001000 \
p_filesz = 0x9ec00 p_memsz = 0x9ec00
Elf header: p_type = 1, p_offset = 0x100000 p_paddr = 0x100000 p_vaddr = 0xff43428680100000 \
p_filesz = 0x2ef00000 p_memsz = 0x2ef00000
Elf header: p_type = 1, p_offset = 0x3f000000 p_paddr = 0x3f000000 p_vaddr = 0xff434286bf000000 \
p_filesz = 0xfd7000 p_memsz = 0xfd7000
Created elf header segment at 0x3ef5d000
"""
IOMEM = """\
00000000-00000fff : Reserved
00001000-0009fbff : System RAM
0009fc00-0009ffff : Reserved
00100000-3ffd6fff : System RAM
  28600000-29601fff : Kernel code
  2f000000-3effffff : Crash kernel
3ffd7000-3fffffff : Reserved
"""
RAM = parse_iomem(IOMEM, "System RAM")
RESERVED = parse_iomem(IOMEM, "Crash kernel")


def _problems(debug: str) -> tuple[str, ...]:
    return header_problems(parse_headers(debug), RAM, RESERVED)


def test_a_real_header_makes_sense() -> None:
    headers = parse_headers(GOOD)
    assert [header.kind for header in headers] == [4, 4, 1, 1, 1, 1]
    assert [header.is_text for header in headers] == [False, False, True, False, False, False]
    assert headers[4].memory_bytes == 0x2EF00000
    assert _problems(GOOD) == ()
    assert parse_complaints(GOOD) == ()


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        # arm64 without _text: the size of the kernel's text is the difference of two things that are not there
        (
            "p_filesz = 0x2830000 p_memsz = 0x2830000",
            "p_filesz = 0xffffbc2700000000 p_memsz = 0xffffbc2700000000",
            "beyond",
        ),
        ("p_paddr = 0x100000 ", "p_paddr = 0xffff800000100000 ", "is not memory of this machine"),
        ("p_offset = 0x100000 ", "p_offset = 0x50000000 ", "is not memory of this machine"),
        ("p_vaddr = 0xff43428680100000", "p_vaddr = 0x100000", "no address of a kernel"),
        ("p_vaddr = 0xff43428680100000", "p_vaddr = 0xff43428681100000", "one direct map"),
        ("p_filesz = 0x2ef00000", "p_filesz = 0x0", "size makes no sense"),
        ("p_filesz = 0x2ef00000 p_memsz = 0x2ef00000", "p_filesz = 0x1000 p_memsz = 0x1000", "the machine has 766 MiB"),
        ("p_paddr = 0x2de39400", "p_paddr = 0x0", "notes have no address"),
        ("p_type = 1", "p_type = 6", "the machine has 766 MiB"),
    ],
)
def test_nonsense_is_named(before: str, after: str, words: str) -> None:
    assert before in GOOD
    assert any(words in problem for problem in _problems(GOOD.replace(before, after)))


def test_no_headers_are_no_good_header() -> None:
    assert _problems("") == ("it has no program headers at all",)


def test_complaints_of_kexec_are_heard() -> None:
    guess = "Can't get the symbol of _text to calculate page_offset."
    said = f"{GOOD}{guess}\nelf_core: Cannot be a complaint\nCannot open /sys/firmware/nothing\n"
    assert parse_complaints(said) == (guess, "Cannot open /sys/firmware/nothing")
    assert parse_guesses(said) == (guess,)


def test_hot_added_memory_is_listed_in_pieces() -> None:
    pieces = (MemoryRange(start=0x1000, last=0x9FBFF), MemoryRange(start=0x100000, last=0x1FFFFFFF))
    pieces += (MemoryRange(start=0x20000000, last=0x3FFD6FFF),)
    assert header_problems(parse_headers(GOOD), pieces, RESERVED) == ()


@given(st.text(max_size=300), st.integers(0, len(GOOD)))
def test_no_output_raises(noise: str, at: int) -> None:
    text = GOOD[:at] + noise + GOOD[at:]
    header_problems(parse_headers(text), RAM, RESERVED)
    parse_complaints(text)


@given(
    st.lists(
        st.builds(
            ProgramHeader,
            name=st.text(max_size=9),
            kind=st.just(1),
            **{field.name: st.integers(0, (1 << 64) - 1) for field in dataclasses.fields(ProgramHeader)[2:]},
        ),
        min_size=1,
        max_size=4,
    )
)
def test_random_addresses_are_never_called_good(headers: list[ProgramHeader]) -> None:
    assert header_problems(headers, RAM, RESERVED)
