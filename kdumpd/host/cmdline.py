# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel command line: words and quotes, and the line for the capture kernel.

Knows which parameters of the running kernel help a second kernel on the same hardware (consoles, quirks of
buses and firmware), which would harm it in a few dozen MB of memory, and which carry secrets. Knows nothing of
what `crashkernel=` means: that is `crashkernel.py`. Syntax: lib/cmdline.c, next_arg() of the kernel.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from kdumpd.host.files import read_text

# What stands on the line for the running system's sake: its memory, processors, root filesystem and init.
_DROP_TEXT = """
    BOOT_IMAGE initrd acpi_no_memhotplug elfcorehdr crashkernel fadump kexec_jump_back_entry dmcryptkeys
    root rootfstype rootflags rootdelay rootwait ro rw resume resume_offset noresume nfsroot nfsaddrs ip vlan bond
    init rdinit single emergency rescue quiet splash rhgb loglevel showopts boot netroot fcoe iscsi_initiator
    mem memmap highmem vmalloc movable_node kernelcore movablecore memtest memory_corruption_check memhp_default_state
    hugepages hugepagesz default_hugepagesz hugetlb_cma hugetlb_free_vmemmap cma swiotlb log_buf_len
    page_owner page_poison page_poisoning debug_pagealloc slub_debug slab_debug slab_nomerge
    init_on_alloc init_on_free kasan kmemleak kmsan vm_debug stack_depot_disable percpu_alloc
    trace_event trace_buf_size trace_options trace_clock ftrace ftrace_filter ftrace_notrace ftrace_graph_filter
    ftrace_graph_notrace ftrace_dump_on_oops kprobe_event tp_printk alloc_snapshot trace_instance
    maxcpus nr_cpus possible_cpus isolcpus nohz nohz_full rcu_nocbs irqaffinity skew_tick numa numa_balancing
    mce panic oops panic_on_warn panic_on_oops panic_on_taint hung_task_panic softlockup_panic hardlockup_panic
    nmi_watchdog unknown_nmi_panic panic_print pause_on_oops crash_kexec_post_notifiers boot_delay initcall_debug
    kgdboc kgdbwait kdb audit audit_backlog_limit security selinux apparmor lsm ima_policy ima_appraise
    cgroup_disable cgroup_enable cgroup_no_v1 transparent_hugepage disable_cpu_apicid initramfs_options psi
    zswap.enabled irqpoll irqfixup reset_devices novmcoredd nokaslr kaslr hest_disable pcie_ports noirqdistrib
"""

# Families that only user space reads, or that only cost memory.
_DROP_PREFIXES = (
    "rd.",  # dracut: nothing in our image reads it
    "rd_",
    "systemd.",
    "udev.",
    "luks",
    "dracut",
    "ignition.",
    "ostree",
    "cloud-init",
    "cloud_init",
    "ds=",
    "autoinstall",
    "inst.",
    "vconsole.",
    "locale.",
    "plymouth.",
    "kfence.",
    "kasan.",
    "kcsan.",
    "kunit.",
    "damon_",
    "zswap.",
)

# A line is readable by everybody in /proc/cmdline of the capture kernel and is stored in the dump: a word that may
# hold a secret never goes there, wherever it came from.
_SECRET = re.compile(r"key|token|passw|passphrase|secret|credential|private|://[^/\s]*@", re.IGNORECASE)

# kernel parameters whose name only looks like a secret
_NO_SECRET = frozenset({"keep_bootcon"})

_COMMON = {
    "novmcoredd": None,  # drivers' own "device dumps" eat the reserved memory
    "hugetlb_cma": "0",  # no memory set aside for huge pages
    "kfence.sample_interval": "0",  # its guard pages cost 2 MiB
    # A root of ramfs, not tmpfs, which takes at most half of the memory (init/do_mounts.c, init_rootfs()).
    "rootfstype": "ramfs",
    "panic": "10",  # should the capture kernel die too, the machine must still come back
    "cgroup_disable": "memory",  # one struct page_ext or counter per page saved
    # 4 MiB: a pointer for each 4 bytes of a chunk of per-cpu memory, since 5.9, in spite of cgroup_disable= (6.1).
    "cgroup.memory": "nokmem",
    "transparent_hugepage": "never",  # 2 MiB pages waste a small memory
    "cma": "0",  # no contiguous area set aside
}

# What may stand on a line several times, each adding to the others: what is there already stays.
# Before 6.6, which brought eventfs, tracefs makes a folder with files for each event as the kernel starts: with Debian
# 12's 6.1 8.6 MiB of inodes and names that are never given back, though MemAvailable counts them as if they could be.
# Nobody traces the capture kernel. This initcall (kernel/trace/trace.c, since 4.1) returns early in a kernel that is
# locked down, too; a kernel without it, or without KALLSYMS, passes the word over.
_ADD_TO = ("initcall_blacklist=tracer_init_tracefs",)

# A device may still raise an interrupt whose handler died with the crashed kernel: poll instead of disabling the line.
_PC_LIKE = {"irqpoll": None, "nr_cpus": "1", "reset_devices": None, "numa": "off"}

# Added per machine (uname -m), over the common ones.
_ADD: Mapping[str, Mapping[str, str | None]] = {
    "x86_64": {
        **_PC_LIKE,
        "mce": "off",  # a machine check raised by the crash must not panic again
        "hest_disable": None,  # the same for errors that firmware reports
        "acpi_no_memhotplug": None,  # memory found by ACPI lies outside the reservation
        "nokaslr": None,  # randomisation may place the kernel where the reservation has no room
        "pcie_ports": "compat",  # no storm of AER and hotplug interrupts from devices left running
    },
    "aarch64": {"irqpoll": None, "nr_cpus": "1", "reset_devices": None, "swiotlb": "noforce"},
    "ppc64le": {"irqpoll": None, "nr_cpus": "16", "noirqdistrib": None, "reset_devices": None, "numa": "off"},
    "s390x": {"nr_cpus": "1", "numa": "off"},
}
_ADD_OTHER: Mapping[str, str | None] = {"irqpoll": None, "maxcpus": "1", "reset_devices": None}

# Processors of the capture kernel: see capture_cpus. Elsewhere the table's number stays.
MOST_CPUS = 4
CPU_BYTES = 16 << 20  # its per-cpu areas and stacks, and the collector's worker with a codec and a batch of pages
SPARE_MARGIN_BYTES = 32 << 20
_TRIED_WITH_MORE = frozenset({"x86_64"})


def split_words(text: str) -> Iterator[str]:
    """The words of a command line; blanks inside double quotes do not end a word (next_arg() in lib/cmdline.c)."""
    word: list[str] = []
    quoted = False
    for char in text:
        if char == '"':
            quoted = not quoted
        if char.isspace() and not quoted:
            if word:
                yield "".join(word)
            word = []
        else:
            word.append(char)
    if word:
        yield "".join(word)


def parse_cmdline(text: str) -> tuple[tuple[str, str | None], ...]:
    """(name, value) for each word up to a lone `--`; the value is None without `=`, and stripped of its quotes."""
    pairs = []
    for word in split_words(text):
        if word == "--":
            break  # what follows is for init, not for the kernel
        name, equals, value = word.strip('"').partition("=")
        pairs.append((name, value.strip('"') if equals else None))
    return tuple(pairs)


class Wishes(NamedTuple):
    """What kdump.conf wants changed: `base` instead of the running kernel's line, parameters to leave out by name,
    words to add. What is added takes the place of our own word of that name.
    """

    base: str | None = None
    remove: tuple[str, ...] = ()
    append: str = ""


def capture_cmdline(
    running: str, arch: str, *, boot_apicid: int | None = None, cpus: int | None = None, wishes: Wishes | None = None
) -> str:
    """The command line of the capture kernel, derived from the one that the `running` kernel was started with.

    `arch` is uname's machine. `boot_apicid` is the APIC id of the processor the firmware started: the capture
    kernel may run on another one, and an INIT to the boot processor resets the machine, so that one is left alone.
    `cpus` is how many processors it may use; None for what the architecture's table says.
    """
    wishes = wishes or Wishes()
    added = {**_COMMON, **_ADD.get(arch, _ADD_OTHER)}
    if cpus is not None:
        added.pop("maxcpus", None)
        added["nr_cpus"] = str(cpus)
    if arch == "x86_64" and boot_apicid is not None:
        added["disable_cpu_apicid"] = str(boot_apicid)
    appended = list(split_words(wishes.append))
    unwanted = {_normal(name) for name in wishes.remove}
    ours = {_normal(name) for name in added} | unwanted
    theirs = {_name(word) for word in appended}
    kept = []
    for word in split_words(running if wishes.base is None else wishes.base):
        if word == "--":
            break
        if _name(word) not in ours and word not in _ADD_TO and _helps(word):
            kept.append(word)
    words = [
        name if value is None else f"{name}={value}"
        for name, value in added.items()
        if _normal(name) not in unwanted | theirs
    ]
    words += [word for word in _ADD_TO if _name(word) not in unwanted]
    return " ".join([*kept, *words, *appended])


def capture_cpus(arch: str, present: int, spare_bytes: int) -> int | None:
    """How many processors the capture kernel gets, of `present` ones; None for what the architecture's table says.

    Packing pages is what a dump takes longest for, and each further processor takes a share of it; but each costs
    memory that a dump may be short of. So one, and another for every CPU_BYTES of the `spare_bytes` that the estimate
    leaves over when a safety margin is taken off, up to MOST_CPUS: beyond that the disk is the slower part.
    """
    if arch not in _TRIED_WITH_MORE:
        return None
    return max(1, min(present, MOST_CPUS, 1 + (spare_bytes - SPARE_MARGIN_BYTES) // CPU_BYTES))


def _normal(name: str) -> str:
    """The kernel takes - and _ in names for the same (parameq() in kernel/params.c)."""
    return name.replace("-", "_")


def _name(word: str) -> str:
    """The name in a word, in one spelling."""
    return _normal(word.strip('"').partition("=")[0])


_DROP_NORMAL = frozenset(_normal(name) for name in _DROP_TEXT.split())


def _helps(word: str) -> bool:
    """True for a word of the running kernel that the capture kernel gets too."""
    name, equals, value = word.strip('"').partition("=")
    if _normal(name) in _DROP_NORMAL or word.startswith(_DROP_PREFIXES):
        return False
    if equals and not value:
        return False  # `foo=` says nothing, and some parsers choke on it
    if '"' in word and word.count('"') % 2:
        return False  # an unbalanced quote would swallow what we add
    return name in _NO_SECRET or _SECRET.search(word) is None


def read_cmdline(root: Path = Path("/")) -> str:
    """/proc/cmdline, one line; empty when it cannot be read."""
    return (read_text(root, "/proc/cmdline") or "").strip()


def parse_boot_apicid(cpuinfo: str) -> int | None:
    """The APIC id of processor 0, from the text of /proc/cpuinfo (x86 only)."""
    processor = None
    for line in cpuinfo.splitlines():
        name, _, value = line.partition(":")
        name = name.strip()
        if name == "processor":
            processor = value.strip()
        elif name == "apicid" and processor == "0":
            return int(value) if value.strip().isdigit() else None
    return None


def read_boot_apicid(root: Path = Path("/")) -> int | None:
    """`parse_boot_apicid` of /proc/cpuinfo."""
    return parse_boot_apicid(read_text(root, "/proc/cpuinfo") or "")
