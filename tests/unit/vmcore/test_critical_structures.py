# SPDX-License-Identifier: GPL-2.0-or-later
"""Tasks, stacks, files and modules of a dead kernel are found by its structures; damaged ones cost pages, not time."""

from __future__ import annotations

import dataclasses
import random
import struct
import time
from pathlib import Path

import fake_kernel
import pytest
from fake_kernel import DIRECT, NEW, PAGE, FakeKernel
from hypothesis import given, settings
from hypothesis import strategies as st

from kdumpd.vmcore.analyst.kernel import Kernel
from kdumpd.vmcore.analyst.trace import Trace
from kdumpd.vmcore.critical import critical_stages, must_keep
from kdumpd.vmcore.elfcore import ElfCore
from kdumpd.vmcore.kernel_facts import KernelFacts
from kdumpd.vmcore.machines import page_tables
from kdumpd.vmcore.vmcoreinfo import parse_vmcoreinfo

TASK, STACK, MODULE, MM, FILE, DENTRY, SIGNAL = (0x900000 + index * 0x20000 for index in range(7))
RQ, PER_CPU, PIDS, FDS = 0xA00000, 0xA10000, 0xA20000, 0xA30000
OFFSETS = {
    "task_struct.tasks": 0, "task_struct.thread_node": 16, "task_struct.signal": 32, "task_struct.stack": 40,
    "task_struct.mm": 48, "task_struct.files": 56, "task_struct.fs": 64, "task_struct.pid_links": 72,
    "signal_struct.thread_head": 0, "pid_namespace.idr.idr_rt.xa_head": 0, "xa_node.slots": 8, "pid.tasks": 0,
    "rq.curr": 0, "rq.idle": 8, "module.list": 0, "module.mem": 16, "module_memory.base": 0, "module_memory.size": 8,
    "files_struct.fdt": 0, "fdtable.max_fds": 0, "fdtable.fd": 8, "fdtable.open_fds": 16, "file.f_inode": 0,
    "file.f_path": 8, "path.mnt": 0, "path.dentry": 8, "mount.mnt": 0, "fs_struct.root": 0, "fs_struct.pwd": 16,
    "dentry.d_parent": 0, "dentry.d_inode": 8, "dentry.d_sb": 16, "dentry.d_name.name": 24,
}  # fmt: skip
SIZES = {
    "task_struct": 6000, "xa_node": 576, "pid": 128, "pid_namespace": 64, "rq": 64, "module": 512, "module_memory": 16,
    "mm_struct": 1024, "files_struct": 64, "fdtable": 32, "file": 64, "dentry": 64, "inode": 64, "mount": 64,
    "fs_struct": 64, "super_block": 64,
}  # fmt: skip
DATA = {"init_task": TASK, "init_pid_ns": PIDS, "modules": MODULE, "runqueues": RQ, "__per_cpu_offset": PER_CPU}
COUNT = 5


def dead(arm64_shift: int | None = None) -> tuple[FakeKernel, KernelFacts]:
    """A kernel with five tasks (the last one only to be found by its pid), files, and a module."""
    kernel = FakeKernel(NEW, arm64_shift=arm64_shift)
    kernel.extra.append(f"SYMBOL(_stext)={fake_kernel.KERNEL:x}")

    def put(at: int, *values: int) -> None:
        for index, value in enumerate(values):
            kernel._u64(at + 8 * index, value)

    def at(place: int) -> int:
        return DIRECT + place

    tasks = [TASK + 0x4000 * index for index in range(COUNT)]
    listed = tasks[:-1]
    for index, task in enumerate(tasks):
        after, before = listed[(index + 1) % len(listed)], listed[index - 1]
        head = SIGNAL + 64 * index
        put(
            task,
            at(after),
            at(before),
            at(head),
            at(head),
            at(head),
            at(STACK + 0x4000 * index),
            at(MM + 0x1000 * index),
        )
        put(head, at(task + 16), at(task + 16))
        put(PIDS + 0x2000 + 128 * index, at(task + 72))
        put(PIDS + 0x1000 + 8 + 8 * index, at(PIDS + 0x2000 + 128 * index))
    put(PIDS, at(PIDS + 0x1000) | 2)
    put(TASK + 56, at(FDS), at(FDS + 0x1000))
    put(FDS, at(FDS + 0x2000))
    put(FDS + 0x2000, 64, at(FDS + 0x3000), at(FDS + 0x4000))
    put(FDS + 0x3000, 0, at(FILE))
    put(FILE, at(FILE + 0x1000), at(FILE + 0x2000), at(DENTRY))
    put(DENTRY, at(DENTRY + 0x1000), 0, 0, at(DENTRY + 0x3000))
    put(DENTRY + 0x1000, at(DENTRY + 0x1000), 0, 0, at(DENTRY + 0x4000))
    put(RQ, at(TASK + 0x4000), at(TASK))
    put(PER_CPU, 0)
    put(MODULE, at(MODULE + 0x1000), at(MODULE + 0x1000))
    put(MODULE + 0x1000, at(MODULE), at(MODULE), at(MODULE + 0x4000), 0x2000)
    facts = KernelFacts(
        release="x",
        build_id=None,
        offsets=OFFSETS,
        sizes=SIZES,
        values={},
        symbols={name: DIRECT + place - fake_kernel.KERNEL for name, place in DATA.items()},
        absolute={},
        source="test",
    )
    return kernel, facts


def walked(kernel: FakeKernel, facts: KernelFacts, path: Path) -> dict[str, set[int]]:
    notes: list[str] = []
    with ElfCore(kernel.write(path)) as core:
        core.use_pages(kernel.page_shift)
        info = parse_vmcoreinfo(kernel.vmcoreinfo())
        tables = page_tables(core, info)
        stages = critical_stages(core, info, tables, facts, notes)
        found = {stage.name: set(stage.pfns.tolist()) for stage in stages}
    assert not [note for note in notes if "fault of kdumpd" in note], notes
    return found


def frames(place: int, size: int, page_size: int = PAGE) -> set[int]:
    return set(range(place // page_size, (place + size + page_size - 1) // page_size))


def test_every_task_is_found_with_its_stack(tmp_path: Path) -> None:
    kernel, facts = dead()
    found = walked(kernel, facts, tmp_path / "core")
    for index in range(COUNT):
        assert found["tasks"] >= frames(TASK + 0x4000 * index, 6000), index
        assert found["stacks"] >= frames(STACK + 0x4000 * index, 0x4000), index
        assert found["memory descriptors"] >= frames(MM + 0x1000 * index, 1024), index
    # The task that the cpu was in comes before the others.
    assert frames(TASK + 0x4000, 6000) <= found["running tasks"]
    assert not frames(TASK + 0x8000, 6000) & found["running tasks"]
    assert list(found).index("kernel log") < list(found).index("running tasks") < list(found).index("tasks")


@pytest.mark.parametrize(("shift", "stack"), [(12, 0x4000), (14, 0x4000), (16, 0x10000)])
def test_tasks_of_arm64_are_found_whatever_the_size_of_pages(shift: int, stack: int, tmp_path: Path) -> None:
    kernel, facts = dead(shift)
    size = 1 << shift
    found = walked(kernel, facts, tmp_path / "core")
    for index in range(COUNT):
        assert found["tasks"] >= frames(TASK + 0x4000 * index, 6000, size), index
        assert found["stacks"] | found["running tasks' stacks"] >= frames(STACK + 0x4000 * index, stack, size), index
    assert found["memory map"] >= frames(kernel.root, 8, size) | frames(kernel.sections, size, size)
    assert kernel.top // size in found["page tables"] | found["kernel name"] | found["memory map"]
    with ElfCore(tmp_path / "core") as core:
        core.use_pages(shift)
        info = parse_vmcoreinfo(kernel.vmcoreinfo())
        trace = Trace(core, info)
        assert Kernel(trace, trace.tables, info, facts).stack_size == stack
        told = dataclasses.replace(facts, sizes={**SIZES, "thread_union": 0x8000})
        assert Kernel(trace, trace.tables, info, told).stack_size == 0x8000


def test_the_stacks_that_cpus_were_on_must_be_kept(tmp_path: Path) -> None:
    kernel, facts = dead()
    running, stack = TASK + 0x4000, STACK + 0x4000

    def musts(name: str) -> set[int]:
        notes: list[str] = []
        with ElfCore(kernel.write(tmp_path / name)) as core:
            info = parse_vmcoreinfo(kernel.vmcoreinfo())
            found = must_keep(core, info, page_tables(core, info), facts, notes)
        assert not [note for note in notes if "running tasks" in note], notes
        return set(found["running tasks"].tolist())

    # Whatever lies where a task is said to be: without the mark at a stack's end it must not switch rules off.
    assert musts("core") == set()
    kernel._u64(stack, 0x57AC6E9D)
    found = musts("marked")
    assert found >= frames(running, 6000) | frames(stack, 0x4000)
    assert not found & (frames(TASK + 0x8000, 6000) | frames(STACK + 0x8000, 0x4000) | frames(RQ, 64))
    kernel._u64(running + 40, DIRECT + stack + 8)  # a stack begins at a page
    assert musts("askew") == set()


def test_files_and_modules_are_found(tmp_path: Path) -> None:
    kernel, facts = dead()
    found = walked(kernel, facts, tmp_path / "core")
    assert found["files"] >= frames(FILE, 64) | frames(DENTRY, 64) | frames(DENTRY + 0x1000, 64)
    assert found["files"] >= frames(FILE + 0x1000, 64) | frames(DENTRY + 0x3000, 256)
    assert found["modules"] >= frames(MODULE + 0x1000, 512) | frames(MODULE + 0x4000, 0x2000)


@pytest.mark.parametrize("place", [TASK, SIGNAL, MODULE, DENTRY, PIDS + 0x1000])
def test_a_list_that_leads_into_itself_or_nowhere_ends(place: int, tmp_path: Path) -> None:
    kernel, facts = dead()
    for number, value in enumerate((DIRECT + place + 8, DIRECT + place, 0xFFFFFFFFFFFFFFFF)):
        kernel._u64(place, value)
        found = walked(kernel, facts, tmp_path / f"core{number}")
        assert frames(STACK + 0x4000, 0x4000) <= found["running tasks' stacks"]


@settings(max_examples=15)
@given(seed=st.integers(0, 1 << 32), count=st.integers(1, 12))
def test_damaged_memory_costs_pages_and_no_time(
    tmp_path_factory: pytest.TempPathFactory, seed: int, count: int
) -> None:
    kernel, facts = dead()
    chance = random.Random(seed)
    for _ in range(count):
        place = chance.choice([TASK, SIGNAL, PIDS, FDS, FILE, DENTRY, MODULE, RQ]) + chance.randrange(0x2000)
        value = chance.choice([chance.getrandbits(64), DIRECT + chance.randrange(16 << 20), 0, (1 << 64) - 1])
        struct.pack_into("<Q", kernel.memory, place, value)
    path = tmp_path_factory.mktemp("damaged") / "core"
    started = time.process_time()
    found = walked(kernel, facts, path)
    path.unlink()
    assert time.process_time() - started < 5
    assert kernel.root // PAGE in found["memory map"]
