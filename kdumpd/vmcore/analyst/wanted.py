# SPDX-License-Identifier: GPL-2.0-or-later
"""The members, types and symbols that the walks and the cross-check of the page rules ask for.

A kernel that lacks one of them (each list holds the names of several releases) is no error: the walk that needs it
says so, or there is another name for it.
"""

from __future__ import annotations

# Of VMCOREINFO's own, to be compared with it.
CHECKED_MEMBERS = (
    "page.flags", "page.mapping", "page.private", "page._mapcount", "page.lru", "page.compound_head",
    "page.compound_info", "mem_section.section_mem_map",
)  # fmt: skip
CHECKED_SIZES = ("page", "mem_section")
# What VMCOREINFO calls it, and the enumerators that it has had: those of a flag are bit numbers, those of a page type
# since 6.12 (4ffca5a96678) the top byte.
CHECKED_FLAGS = ("PG_lru", "PG_private", "PG_swapcache", "PG_swapbacked", "PG_slab", "PG_hwpoison", "PG_hugetlb")
CHECKED_TYPES = {
    "PAGE_BUDDY_MAPCOUNT_VALUE": "PGTY_buddy",
    "PAGE_SLAB_MAPCOUNT_VALUE": "PGTY_slab",
    "PAGE_OFFLINE_MAPCOUNT_VALUE": "PGTY_offline",
    "PAGE_HUGETLB_MAPCOUNT_VALUE": "PGTY_hugetlb",
    "PAGE_UNACCEPTED_MAPCOUNT_VALUE": "PGTY_unaccepted",
}

MEMBERS = (
    *CHECKED_MEMBERS,
    # tasks
    "task_struct.tasks", "task_struct.thread_node", "task_struct.signal", "task_struct.sighand", "task_struct.stack",
    "task_struct.comm", "task_struct.pid", "task_struct.mm", "task_struct.active_mm", "task_struct.files",
    "task_struct.fs", "task_struct.cred", "task_struct.real_cred", "task_struct.nsproxy", "task_struct.thread_pid",
    "task_struct.pid_links",
    "task_struct.thread.sp", "task_struct.thread.cpu_context.sp", "signal_struct.thread_head",
    "pid_namespace.idr.idr_rt.xa_head", "xa_node.shift", "xa_node.slots", "pid.tasks", "rq.curr", "rq.idle",
    # memory and files of a task
    "mm_struct.rss_stat", "mm_struct.pgd", "mm_struct.exe_file", "percpu_counter.counters",
    "files_struct.fdt", "fdtable.max_fds", "fdtable.fd", "fdtable.open_fds", "fs_struct.root", "fs_struct.pwd",
    "path.mnt", "path.dentry", "file.f_path", "file.f_inode", "dentry.d_parent", "dentry.d_inode", "dentry.d_sb",
    "dentry.d_name.name", "mount.mnt", "mount.mnt_parent", "mount.mnt_mountpoint", "mount.mnt_devname",
    "vfsmount.mnt_sb", "vfsmount.mnt_root", "super_block.s_type", "file_system_type.name", "inode.i_sb",
    # modules
    "module.list", "module.mem", "module_memory.base", "module_memory.size", "module.core_layout",
    "module.init_layout", "module.sect_attrs", "module_layout.base", "module_layout.size",
    # devices: the blocks of hotplug memory
    "kset.list", "kset.kobj", "kobject.entry", "kobject.name", "subsys_private.subsys", "subsys_private.klist_devices",
    "klist.k_list", "klist_node.n_node", "device_private.knode_bus", "device_private.device", "memory_block.dev",
    # the rest of what crash asks for when it opens a dump
    "kmem_cache.list", "kmem_cache.name", "tss_struct.x86_tss", "x86_hw_tss.ist", "pcpu_hot.hardirq_stack_ptr",
    "pcpu_hot.current_task", "pglist_data.node_zones", "pglist_data.nr_zones",
    "zone.name", "pv_info.name",
)  # fmt: skip

SIZES = (
    *CHECKED_SIZES,
    "task_struct", "thread_union", "signal_struct", "sighand_struct", "cred", "nsproxy", "pid", "pid_namespace",
    "xa_node", "mm_struct", "mm_rss_stat", "percpu_counter", "files_struct", "fdtable", "fs_struct", "file", "dentry",
    "inode", "mount", "super_block", "file_system_type", "module", "module_memory", "module_layout", "pglist_data",
    "zone", "rq", "tss_struct", "kmem_cache", "kset", "kobject", "subsys_private", "device_private", "memory_block",
    "pcpu_hot",
)  # fmt: skip

ENUMERATORS = (*CHECKED_FLAGS, *CHECKED_TYPES.values())

# Areas of the kernel image.
BOUNDS = (
    "_stext", "_etext", "_sdata", "_edata", "__bss_start", "__bss_stop", "_end", "__start_rodata", "__end_rodata",
    "__per_cpu_start", "__per_cpu_end", "__start_BTF", "__stop_BTF", "orc_lookup", "orc_lookup_end",
    "__start_orc_unwind_ip", "__stop_orc_unwind_ip", "__start_orc_unwind", "__stop_orc_unwind",
)  # fmt: skip

# Variables that crash, drgn or libkdumpfile read by name, wherever the linker put them, with room for their size.
VARIABLES = {
    "linux_banner": 512, "saved_command_line": 8, "page_offset_base": 8, "vmalloc_base": 8, "vmemmap_base": 8,
    "phys_base": 8, "pgdir_shift": 4, "ptrs_per_p4d": 4, "__pgtable_l5_enabled": 4, "kimage_voffset": 8,
    "memstart_addr": 8, "vabits_actual": 8, "__cpu_possible_mask": 1024, "__cpu_present_mask": 1024,
    "__cpu_online_mask": 1024, "__cpu_active_mask": 1024, "nr_cpu_ids": 4, "cpu_number": 4, "node_states": 1024,
    "node_data": 8192, "__per_cpu_offset": 8192 * 8, "xen_start_info": 8, "shadow_timekeeper": 512, "timekeeper": 512,
    "tk_core": 512, "pv_info": 32, "pv_ops": 512, "idt_table": 4096, "nr_irqs": 4, "mt_slots": 64, "mt_pivots": 64,
    "high_memory": 8, "max_pfn": 8, "max_low_pfn": 8, "min_low_pfn": 8, "mem_section": 8, "_totalram_pages": 8,
    "totalram_pages": 8, "nr_swapfiles": 4, "swap_info": 256, "bus_kset": 8, "memory_block_size_probed": 8,
    "lookup_num_blocks": 4,
    "zero_pfn": 8, "huge_zero_pfn": 8, "huge_zero_page": 8, "empty_zero_page": 8, "kmem_cache": 8, "slab_caches": 16,
    "pageflag_names": 1024, "modules": 16, "module_kset": 8, "nr_threads": 4, "arch_task_struct_size": 4,
    "init_pid_ns": 512, "init_task": 16384, "init_mm": 4096, "init_files": 1024, "init_fs": 64, "init_cred": 256,
    "init_nsproxy": 128, "crashing_cpu": 4, "panic_cpu": 4, "task_state_array": 256, "jiffies_64": 8, "jiffies": 8,
    "tainted_mask": 8, "taint_flags": 512, "avenrun": 24, "prb": 8, "printk_rb_static": 128, "log_buf": 8,
    "log_buf_len": 4, "clear_seq": 32, "boot_cpu_data": 512, "vmcoreinfo_data": 8, "vmcoreinfo_size": 8,
    "vmcoreinfo_note": 8, "kexec_crash_image": 8, "crash_notes": 8, "runqueues": 8, "vmap_area_root": 8,
    "vmap_area_list": 16, "vmap_nodes": 8, "nr_vmap_nodes": 4, "vmlist": 8, "super_blocks": 16, "file_systems": 8,
    "root_mountflags": 4, "irq_desc_tree": 16, "sparse_irqs": 16, "workqueues": 16, "hugetlb_max_hstate": 4,
    "hstates": 4096, "default_hstate_idx": 4, "vm_stat": 512, "vm_zone_stat": 512, "vm_node_stat": 512,
    "iomem_resource": 128, "ioport_resource": 128, "panic_on_oops": 4, "sysctl_sched_features": 4, "log_first_idx": 4,
}  # fmt: skip

# Functions whose first bytes crash looks at, and those to which a stack leads without a call.
FUNCTIONS = (
    "__x64_sys_open", "__x64_sys_fork", "__x64_sys_read", "__arm64_sys_read", "sys_open", "sys_fork", "sys_read",
    "do_futex", "do_fork", "vfs_read", "__schedule", "schedule", "panic", "__switch_to_asm", "ret_from_fork",
    "ret_from_fork_asm", "common_startup_64", "secondary_startup_64", "secondary_startup_64_no_verify", "rest_init",
    "kernel_init", "entry_SYSCALL_64", "entry_SYSCALL_64_after_hwframe", "default_do_nmi", "asm_exc_nmi",
    "asm_exc_page_fault", "start_secondary", "cpu_startup_entry", "__switch_to", "el0t_64_sync", "ret_to_user",
)  # fmt: skip
# crash takes 500 instructions of these apart to find out where a sleeping task goes on.
DISASSEMBLED = ("__schedule", "schedule")

# Arrays of pointers to text that is printed.
TEXTS = {"task_state_array": (8, 32), "pageflag_names": (16, 64)}

PER_CPU = {
    "cpu_number": 4, "current_task": 8, "pcpu_hot": 64, "runqueues": 0, "cpu_tss_rw": 0, "hardirq_stack_ptr": 8,
    "irq_stack_ptr": 8, "kernel_cpustat": 128, "tick_cpu_sched": 512, "cpu_info": 512,
    "this_cpu_off": 8, "cpu_current_top_of_stack": 8, "__entry_task": 8, "overflow_stack": 4096, "cpu_llc_id": 4,
    "const_current_task": 8, "const_cpu_current_top_of_stack": 8, "cea_exception_stacks": 8,
    "nmi_print_seq": 8192, "safe_print_seq": 8192,
}  # fmt: skip

SYMBOLS = (*BOUNDS, *VARIABLES, *FUNCTIONS, *PER_CPU)
