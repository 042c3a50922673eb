# SPDX-License-Identifier: GPL-2.0-or-later
"""ELF notes: all of them are found, whatever padding lies between, and no amount of zeros takes long."""

from __future__ import annotations

import struct
import time

from hypothesis import given
from hypothesis import strategies as st

from kdumpd.vmcore.notes import Note, parse_notes


def packed(name: bytes, kind: int, text: bytes) -> bytes:
    return struct.pack("<III", len(name), len(text), kind) + b"".join(
        part.ljust(-(-len(part) // 4) * 4, b"\0") for part in (name, text)
    )


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 5), st.binary(max_size=9)), max_size=6))
def test_notes_between_zeros_are_found(drawn: list[tuple[int, int, bytes]]) -> None:
    block = b"".join(bytes(12 * zeros) + packed(b"CORE\0", kind, text) for zeros, kind, text in drawn) + bytes(30)
    found = list(parse_notes(block))
    assert [(note.name, note.kind, note.description) for note in found] == [
        ("CORE", kind, text) for _, kind, text in drawn
    ]
    assert all(block[note.offset :].startswith(note.description) for note in found)


def test_a_block_of_zeros_takes_no_time() -> None:
    block = bytes(64 << 20) + b"\0\0\1"
    began = time.process_time()
    assert list(parse_notes(block)) == list[Note]()
    assert time.process_time() - began < 2
