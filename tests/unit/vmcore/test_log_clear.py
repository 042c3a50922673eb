# SPDX-License-Identifier: GPL-2.0-or-later
"""Where the log begins that nobody cleared."""

from __future__ import annotations

import pytest

from kdumpd.errors import VmcoreError
from kdumpd.vmcore.log_clear import clear_sequence
from kdumpd.vmcore.vmcoreinfo import Vmcoreinfo, parse_vmcoreinfo


class Memory:
    """Sixty-four bytes at address 0x1000."""

    def __init__(self, content: bytes) -> None:
        self._content = content.ljust(64, b"\0")

    def read(self, vaddr: int, size: int) -> bytes:
        return self._content[vaddr - 0x1000 :][:size]

    def read_u64(self, vaddr: int) -> int:
        return int.from_bytes(self.read(vaddr, 8), "little")


def info(*lines: str) -> Vmcoreinfo:
    return parse_vmcoreinfo("\n".join(lines).encode())


PLAIN = ("SYMBOL(clear_seq)=1000",)
LATCHED = (*PLAIN, "SIZE(latched_seq)=64", "OFFSET(latched_seq.val)=8")


@pytest.mark.parametrize(
    ("lines", "numbers", "expected"),
    [
        (PLAIN, [77], 77),
        (PLAIN, [0], 0),
        # The count decides which of both values readers take.
        (LATCHED, [4, 10, 11], 10),
        (LATCHED, [5, 10, 11], 11),
    ],
)
def test_the_sequence_number(lines: tuple[str, ...], numbers: list[int], expected: int) -> None:
    memory = Memory(b"".join(number.to_bytes(8, "little") for number in numbers))
    assert clear_sequence(memory, info(*lines)) == expected


@pytest.mark.parametrize("lines", [(), (*PLAIN, "SIZE(latched_seq)=64"), (*LATCHED, "OFFSET(latched_seq.val)=-8")])
def test_what_cannot_be_known_is_said(lines: tuple[str, ...]) -> None:
    with pytest.raises(VmcoreError, match="nobody knows when the log was cleared"):
        clear_sequence(Memory(b""), info(*lines))
