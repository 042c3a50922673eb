# SPDX-License-Identifier: GPL-2.0-or-later
"""Memory of a running guest that QEMU dumped: ELF with and without a note of VMCOREINFO, and kdump-compressed."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import collect
from lab import guest_dump, pages, tools, vmcore
from lab.guest_dump import GuestDumps


@pytest.fixture(scope="module")
def guest() -> GuestDumps:
    """The dumps of one guest."""
    return guest_dump.guest_dumps()


def test_an_elf_core_with_a_note_is_filtered(guest: GuestDumps, tmp_path: Path) -> None:
    """crash judges: makedumpfile 1.7.8 finds no memory in what QEMU 10 writes."""
    out = tmp_path / "out"
    done = collect("-d", "31", "-z", guest.elf, out)
    assert "VMCOREINFO" not in done.stderr
    commands = ["ps", "log", "mod", "files"]
    symbols = vmcore.debug_symbols(guest.release)
    shown = tools.crash(symbols, out, commands)
    assert guest.marker in shown
    assert shown == tools.crash(symbols, guest.elf, commands)
    assert guest.marker in collect("--dump-dmesg", guest.elf).stdout


def test_without_a_note_vmcoreinfo_is_found_in_memory(guest: GuestDumps, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = collect("-d", "31", "-z", guest.bare, out)
    assert "VMCOREINFO was found in the memory itself" in done.stderr
    assert guest.marker in collect("--dump-dmesg", guest.bare).stdout
    with pages.Dump(out) as dump:
        assert 3000 < len(dump.pfns) < len(dump.memory) / 2


def test_qemus_own_kdump_holds_the_same(guest: GuestDumps, tmp_path: Path) -> None:
    """The guest stood still between its ELF and its kdump-compressed dump."""
    from_kdump, from_elf = tmp_path / "from-kdump", tmp_path / "from-elf"
    collect("-d", "31", "-z", guest.kdump, from_kdump)
    collect("-d", "31", "-z", guest.elf, from_elf)
    found = pages.compare(from_kdump, from_elf)
    assert (found.missing, found.extra, found.differing) == ([], [], [])
    collect("--verify", guest.kdump)
