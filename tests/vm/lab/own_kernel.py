# SPDX-License-Identifier: GPL-2.0-or-later
"""A kernel that nobody packages: Debian's newest source with a small configuration, for options that none of Debian's
kernels is built with.

Everything is built in. Ten minutes of two processors when nobody else wants them; kept in the cache by what decides the
result. Needs flex, bison, bc, libelf-dev and libssl-dev on this host (`tests/run matrix` installs them).
"""

from __future__ import annotations

import inspect
import os
import re
import shutil
from pathlib import Path

from .aptroot import CACHE, AptRoot, LabError, run
from .cached import digest, made_once
from .whole import WholeKernel

SUITE = "forky"
SUFFIX = "-kdumpd-lab"
BUILD_TIMEOUT_S = 3 * 3600

# What a guest of the laboratory needs, systemd too, and a crash; what is not named here is off (allnoconfig).
_ON = """
64BIT SMP HYPERVISOR_GUEST PARAVIRT KVM_GUEST X86_X2APIC MTRR MODULES MODULE_UNLOAD DEBUG_KERNEL KALLSYMS KALLSYMS_ALL
PRINTK PRINTK_TIME BUG ELF_CORE FUTEX EPOLL SIGNALFD TIMERFD EVENTFD SHMEM AIO IO_URING ADVISE_SYSCALLS MEMBARRIER
SYSVIPC POSIX_TIMERS MULTIUSER SYSFS_SYSCALL NAMESPACES CGROUPS BINFMT_ELF BINFMT_SCRIPT HIGH_RES_TIMERS NO_HZ_IDLE
HZ_250
BLK_DEV_INITRD RD_GZIP RD_XZ RD_ZSTD RD_LZ4 KERNEL_ZSTD CC_OPTIMIZE_FOR_PERFORMANCE
RELOCATABLE RANDOMIZE_BASE RANDOMIZE_MEMORY KEXEC KEXEC_FILE CRASH_DUMP CRASH_HOTPLUG HOTPLUG_CPU SPARSEMEM_VMEMMAP
UNWINDER_FRAME_POINTER DEBUG_INFO_NONE MAGIC_SYSRQ IKCONFIG IKCONFIG_PROC SECURITYFS
PROC_FS PROC_KCORE PROC_VMCORE PROC_SYSCTL PROC_PAGE_MONITOR SYSFS TMPFS TMPFS_XATTR TMPFS_POSIX_ACL DEVTMPFS
DEVTMPFS_MOUNT CONFIGFS_FS INOTIFY_USER FILE_LOCKING EXT4_FS EXT4_USE_FOR_EXT2 MISC_FILESYSTEMS SQUASHFS SQUASHFS_XATTR
SQUASHFS_ZLIB SQUASHFS_ZSTD SQUASHFS_XZ
TTY UNIX98_PTYS SERIAL_8250 SERIAL_8250_CONSOLE SERIAL_8250_PNP HW_RANDOM HW_RANDOM_VIRTIO VIRTIO_CONSOLE
STANDALONE FW_LOADER BLOCK PARTITION_ADVANCED MSDOS_PARTITION EFI_PARTITION BLK_DEV BLK_DEV_LOOP BLK_DEV_NVME
PCI PCI_MSI PCIEPORTBUS ACPI PNP VIRTIO_MENU VIRTIO_PCI VIRTIO_BLK NET UNIX NETDEVICES
MD BLK_DEV_DM RTC_CLASS RTC_DRV_CMOS WATCHDOG I6300ESB_WDT
CRYPTO CRYPTO_AES CRYPTO_AES_NI_INTEL CRYPTO_XTS CRYPTO_CBC CRYPTO_ECB CRYPTO_ESSIV CRYPTO_SHA256 CRYPTO_SHA512
CRYPTO_HMAC CRYPTO_USER_API_HASH CRYPTO_USER_API_SKCIPHER KEYS
"""
_OTHER = ("NR_CPUS=8", f'LOCALVERSION="{SUFFIX}"', "CPU_MITIGATIONS=n", "RD_LZMA=n", "RD_BZIP2=n", "RD_LZO=n", "RAS=n")


def own_kernel(*options: str) -> WholeKernel:
    """The kernel with `options` besides (names without CONFIG_). Raises LabError when it cannot be built, or lacks one
    of them."""
    apt = AptRoot(SUITE)
    meta = apt.needs("linux-source", "linux-source-")
    if not meta:
        raise LabError(f"{SUITE} has no source of a kernel")
    version = apt.versions(meta[:1])[meta[0]]
    recipe = [version, _ON, *_OTHER, *options, inspect.getsource(_build)]
    folder = made_once(
        CACHE / "kernels", "own", digest("\0".join(recipe)),
        lambda scratch: _build(apt, meta[0], options, scratch), part="root", kept=4,
    )  # fmt: skip
    (image,) = (folder / "boot").glob("vmlinuz-*")
    return WholeKernel(root=folder, release=image.name.removeprefix("vmlinuz-"), image=image)


def _build(apt: AptRoot, package: str, options: tuple[str, ...], scratch: Path) -> None:
    """Builds below `scratch`; /boot and /lib/modules are then in `scratch`/root."""
    run(["dpkg-deb", "-x", str(apt.download(package, scratch)), str(scratch / "package")], timeout=300)
    (archive,) = (scratch / "package/usr/src").glob("linux-source-*.tar.xz")
    run(["tar", "-x", "-f", str(archive), "-C", str(scratch)], timeout=600)
    source = scratch / archive.name.removesuffix(".tar.xz")
    wanted = [f"CONFIG_{name}=y" for name in (*_ON.split(), *options)]
    (scratch / "wanted").write_text("\n".join([*wanted, *(f"CONFIG_{line}" for line in _OTHER)]) + "\n")
    env = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C", "HOME": str(scratch)}
    make = ["make", "-C", str(source)]
    run([*make, "allnoconfig"], timeout=300, env=env | {"KCONFIG_ALLCONFIG": str(scratch / "wanted")})
    config = (source / ".config").read_text()
    if lacking := [line for line in wanted if f"\n{line}\n" not in config]:
        raise LabError(f"{package} takes no {', '.join(lacking)}")
    run(["nice", "-n", "5", *make, f"-j{os.cpu_count()}", "bzImage"], timeout=BUILD_TIMEOUT_S, env=env)
    take(source, scratch / "root")


def take(source: Path, root: Path) -> None:
    """What of a built source a machine has: /boot and, without any module, /lib/modules below `root`."""
    release = (source / "include/config/kernel.release").read_text().strip()
    if not re.fullmatch(r"[0-9][^/ ]*", release):
        raise LabError(f"{source}: the release {release!r} is none")
    modules = root / "usr/lib/modules" / release
    modules.mkdir(parents=True)
    (root / "boot").mkdir()
    (root / "lib").symlink_to("usr/lib")
    shutil.copy(source / "arch/x86/boot/bzImage", root / f"boot/vmlinuz-{release}")
    shutil.copy(source / ".config", root / f"boot/config-{release}")
    for name in ("modules.builtin", "modules.builtin.modinfo"):
        shutil.copy(source / name, modules / name)
    (modules / "modules.order").touch()
    run(["depmod", "-b", str(root), release], timeout=60)
