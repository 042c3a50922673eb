# SPDX-License-Identifier: GPL-2.0-or-later
"""The pages that matter first are found by walking, and nothing that is damaged stops the walk."""

from __future__ import annotations

from pathlib import Path

import fake_kernel
from fake_kernel import NEW, PAGE, PHYS_BASE, FakeKernel

from kdumpd.vmcore.critical import critical_stages, must_keep
from kdumpd.vmcore.elfcore import ElfCore
from kdumpd.vmcore.machines import page_tables
from kdumpd.vmcore.vmcoreinfo import parse_vmcoreinfo


def walked(kernel: FakeKernel, folder: Path) -> tuple[dict[str, set[int]], dict[str, set[int]], list[str]]:
    """Stages by name, must-keep pages by name, notes."""
    notes: list[str] = []
    with ElfCore(kernel.write(folder / "core")) as core:
        info = parse_vmcoreinfo(kernel.vmcoreinfo())
        tables = page_tables(core, info)
        stages = {stage.name: set(stage.pfns.tolist()) for stage in critical_stages(core, info, tables, None, notes)}
        musts = {name: set(pfns.tolist()) for name, pfns in must_keep(core, info, tables, None, []).items()}
    return stages, musts, notes


def named(kernel: FakeKernel) -> FakeKernel:
    kernel.extra += [f"SYMBOL(init_uts_ns)={fake_kernel.KERNEL + 0x1000:x}", f"SYMBOL(_stext)={fake_kernel.KERNEL:x}"]
    return kernel


def test_memory_map_tree_and_page_tables_are_found(tmp_path: Path) -> None:
    kernel = named(FakeKernel(NEW))
    stages, musts, _ = walked(kernel, tmp_path)
    frames = {kernel.top // PAGE, *(frame // PAGE for frame in kernel._tables.values())}
    assert stages["page tables"] >= frames
    assert kernel.root // PAGE in stages["memory map"]
    assert (PHYS_BASE + 0x1000) // PAGE in stages["kernel name"]
    assert kernel.top // PAGE in musts["page tables"]
    assert kernel.root // PAGE in musts["memory map"]


def test_a_stage_that_fails_is_one_note_and_the_next_goes_on(tmp_path: Path) -> None:
    kernel = FakeKernel(NEW, levels=5)
    stages, _, notes = walked(kernel, tmp_path)
    assert stages["kernel log"] == {kernel.top // PAGE}
    assert kernel.root // PAGE in stages["memory map"]
    assert [note for note in notes if "kernel log" in note and "SYMBOL(prb)" in note]
    assert len(notes) == len(set(notes))


def test_a_table_that_points_at_itself_ends(tmp_path: Path) -> None:
    kernel = named(FakeKernel(NEW))
    kernel._u64(kernel.top + 511 * 8, kernel.top | 0x63)
    stages, _, _ = walked(kernel, tmp_path)
    assert kernel.top // PAGE in stages["page tables"]
