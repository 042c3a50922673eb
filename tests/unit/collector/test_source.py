# SPDX-License-Identifier: GPL-2.0-or-later
"""What is known of a crash before a page is copied."""

from __future__ import annotations

from pathlib import Path

import pytest
from fake_kernel import KERNEL, OLD, PHYS_BASE, FakeKernel

from kdumpd.collector.source import Source

UTS = 0x200400
NAMES = (b"Linux", b"host", b"5.10.0-32-cloud-amd64", b"#1 SMP", b"x86_64", b"(none)")


@pytest.mark.parametrize(("place", "line"), [(4, None), (0, None), (0, "OFFSET(uts_namespace.name)=0")])
def test_the_name_of_the_kernel(place: int, line: str | None, tmp_path: Path) -> None:
    """Kernels before 5.11 do not tell where in init_uts_ns it is: behind a reference count."""
    kernel = FakeKernel(OLD)
    for index, text in enumerate(NAMES):
        at = UTS + place + 65 * index
        kernel.memory[at : at + len(text)] = text
    kernel.memory[UTS] = 3 if place else kernel.memory[UTS]
    kernel.extra = [f"SYMBOL(init_uts_ns)={KERNEL + UTS - PHYS_BASE:x}", *([line] if line else [])]
    with Source.open(kernel.write(tmp_path / "core")) as source:
        found = source.utsname()
        assert (found.sysname, found.nodename, found.release, found.machine) == (
            "Linux", "host", "5.10.0-32-cloud-amd64", "x86_64",
        )  # fmt: skip
        assert not [note for note in source.notes if "name of the kernel" in note]


def test_a_damaged_name_falls_back_to_vmcoreinfo(tmp_path: Path) -> None:
    kernel = FakeKernel(OLD)
    kernel.extra = [f"SYMBOL(init_uts_ns)={KERNEL + UTS - PHYS_BASE:x}"]
    with Source.open(kernel.write(tmp_path / "core")) as source:
        assert source.utsname().release == "6.1.0-fake"
        assert "init_uts_ns is damaged" in source.notes[-1]
