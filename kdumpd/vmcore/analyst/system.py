# SPDX-License-Identifier: GPL-2.0-or-later
"""What belongs to no task: variables that tools read by name, zones and nodes, blocks of memory, slab caches."""

from __future__ import annotations

from kdumpd.errors import VmcoreError
from kdumpd.vmcore.analyst.kernel import Kernel
from kdumpd.vmcore.analyst.wanted import TEXTS, VARIABLES

_MAX_NODES = 1 << 10
_MAX_ZONES = 8
_MAX_BLOCKS = 1 << 14
_MAX_BUSES = 1 << 9
_MAX_CACHES = 1 << 12
_MAX_DATA = 16 << 20


def keep_variables(kernel: Kernel) -> None:
    """What tools read by name, the texts that arrays point at, and the cache of caches."""
    for name, size in VARIABLES.items():
        address = kernel.symbol(name)
        if address is not None and address >> 63:
            kernel.trace.keep(address, size)
    for name, (step, count) in TEXTS.items():
        address = kernel.symbol(name)
        if address is None:
            continue
        for index in range(count):
            try:
                # The pointer is the last word of struct trace_print_flags as well as of a plain array.
                text = kernel.u64(address + index * step + step - 8)
            except VmcoreError:
                break
            if not text >> 63:
                break
            kernel.text(text)
    if kernel.has("pv_info.name") and (paravirt := kernel.symbol("pv_info")) is not None:
        kernel.text(kernel.pointer(paravirt, "pv_info.name"))
    for name, size in (("saved_command_line", 4096), ("kmem_cache", kernel.facts.sizes.get("kmem_cache", 0))):
        pointer = kernel.symbol(name)
        if pointer is not None:
            kernel.trace.keep(kernel.u64(pointer), size)


def keep_data_section(kernel: Kernel) -> None:
    """.data in whole: a few hundred kB when compressed, with variables that a newer tool may read by name."""
    begin, end = kernel.need("_sdata"), kernel.need("_edata")
    if 0 < end - begin <= _MAX_DATA:
        kernel.trace.keep(begin, end - begin)


def keep_zones(kernel: Kernel) -> None:
    """struct pglist_data of each node, with the zones in it."""
    table = kernel.need("node_data")
    size = kernel.size("pglist_data")
    for index in range(_MAX_NODES):
        node = kernel.u64(table + index * 8)
        if not node >> 63:
            break
        kernel.trace.keep(node, size)
        zones = node + kernel.offset("pglist_data.node_zones")
        step = kernel.size("zone")
        for at in range(zones, min(zones + _MAX_ZONES * step, node + size - step), step):
            name = kernel.pointer(at, "zone.name")
            # The array is followed by other members: the zones end where no name is.
            if not name >> 63:
                break
            kernel.text(name)


def keep_memory_blocks(kernel: Kernel) -> None:
    """The devices of the bus "memory", which tell where memory can be hotplugged: crash reads them all."""
    kset = kernel.u64(kernel.need("bus_kset"))
    kernel.struct(kset, "kset")
    entry_at, name_at = kernel.offset("kobject.entry"), kernel.offset("kobject.name")
    # A bus is a kset: the first member of struct subsys_private is one, and of struct kset its list.
    kobject_at = kernel.offset("subsys_private.subsys") + kernel.offset("kset.kobj")
    devices_at = kernel.offset("subsys_private.klist_devices") + kernel.offset("klist.k_list")
    for entry in kernel.listed(kset + kernel.offset("kset.list"), limit=_MAX_BUSES):
        kobject = entry - entry_at
        kernel.struct(kobject, "kobject")
        try:
            name = kernel.u64(kobject + name_at)
            if kernel.trace.read(name, 7) != b"memory\0":
                continue
            private = kobject - kobject_at
            kernel.struct(private, "subsys_private")
            for node in kernel.listed(private + devices_at, limit=_MAX_BLOCKS):
                device = node - kernel.offset("klist_node.n_node") - kernel.offset("device_private.knode_bus")
                kernel.struct(device, "device_private")
                block = kernel.pointer(device, "device_private.device") - kernel.offset("memory_block.dev")
                kernel.struct(block, "memory_block")
        except VmcoreError:
            continue


def keep_slab_caches(kernel: Kernel) -> None:
    """struct kmem_cache of all caches and their names."""
    size = kernel.size("kmem_cache")
    list_at = kernel.offset("kmem_cache.list")
    for entry in kernel.listed(kernel.need("slab_caches"), limit=_MAX_CACHES):
        cache = entry - list_at
        kernel.trace.keep(cache, size)
        try:
            kernel.text(kernel.pointer(cache, "kmem_cache.name"))
        except VmcoreError:
            continue
