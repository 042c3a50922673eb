# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs in the Python that drgn belongs to: what it reads in a dump, as JSON.

Arguments: DUMP VMLINUX, for the kernel's name, log and tasks; or DUMP VMLINUX pages PFN..., for struct pages.
"""

from __future__ import annotations

import json
import sys

import drgn
from drgn.helpers.linux.mm import PageHWPoison, PageLRU, PageSlab, PageTail, compound_head, pfn_to_page
from drgn.helpers.linux.pid import for_each_task
from drgn.helpers.linux.printk import get_printk_records


def pages(program: drgn.Program, pfns: list[int]) -> dict[str, object]:
    """What kind of page each is; of a tail, what its head is."""
    found = []
    for pfn in pfns:
        page = pfn_to_page(program, pfn)
        head = compound_head(page)
        found.append(
            {
                "pfn": pfn,
                "tail": PageTail(page),
                "slab": PageSlab(head),
                "hwpoison": PageHWPoison(page) or PageHWPoison(head),
                "private": head.private.value_(),
                "lru": PageLRU(head),
                "mapping": head.mapping.value_(),
                "mapcount": head._mapcount.counter.value_() & 0xFFFFFFFF,
            }
        )
    return {"pages": found}


def machine(program: drgn.Program) -> dict[str, object]:
    """What an analyst asks first."""
    names = program["init_uts_ns"].name
    return {
        "release": names.release.string_().decode(),
        "machine": names.machine.string_().decode(),
        "log": [record.text.decode(errors="replace") for record in get_printk_records(program)],
        "tasks": sorted((task.pid.value_(), task.comm.string_().decode()) for task in for_each_task(program)),
        "panic_pid": program.crashed_thread().object.pid.value_(),
        "panic_trace": [frame.name for frame in program.crashed_thread().stack_trace()],
    }


def main() -> None:
    """Prints it."""
    dump, vmlinux, *more = sys.argv[1:]
    program = drgn.Program()
    program.set_core_dump(dump)
    program.load_debug_info([vmlinux])
    json.dump(pages(program, [int(pfn) for pfn in more[1:]]) if more else machine(program), sys.stdout)


if __name__ == "__main__":
    main()
