# SPDX-License-Identifier: GPL-2.0-or-later
"""Open files and what their paths are made of: dentries up to the root, mounts up to the topmost."""

from __future__ import annotations

import struct

from kdumpd.errors import VmcoreError
from kdumpd.vmcore.analyst.kernel import Kernel

_MAX_FILES = 1 << 12  # of one table
_MAX_ALL_FILES = 1 << 16
_MAX_DEPTH = 64
_POINTER = struct.Struct("<Q")


class Files:
    """Keeps what `files` shows of tasks; each struct once."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._seen: set[int] = set()
        self._count = 0

    def keep(self, tasks: list[int]) -> None:
        """Root, working directory and open files of each task. Raises VmcoreError when offsets are not known."""
        kernel = self._kernel
        places = (kernel.offset("task_struct.fs"), kernel.offset("task_struct.files"))
        for task in tasks:
            for place, keep in zip(places, (self._keep_fs, self._keep_table), strict=True):
                try:
                    address = kernel.u64(task + place)
                    if self._new(address):
                        keep(address)
                except VmcoreError:
                    continue

    def _new(self, address: int) -> bool:
        if not address >> 63 or address in self._seen:
            return False
        self._seen.add(address)
        return True

    def _keep_fs(self, fs: int) -> None:
        self._kernel.struct(fs, "fs_struct")
        for member in ("fs_struct.root", "fs_struct.pwd"):
            self._keep_path(fs + self._kernel.offset(member))

    def _keep_table(self, files: int) -> None:
        kernel = self._kernel
        kernel.struct(files, "files_struct")
        table = kernel.pointer(files, "files_struct.fdt")
        kernel.struct(table, "fdtable")
        count = min(kernel.u32(table + kernel.offset("fdtable.max_fds")), _MAX_FILES)
        kernel.trace.keep(kernel.pointer(table, "fdtable.open_fds"), (count + 7) // 8)
        for (file,) in _POINTER.iter_unpack(kernel.trace.read(kernel.pointer(table, "fdtable.fd"), count * 8)):
            if self._new(file) and self._count < _MAX_ALL_FILES:
                self._count += 1
                try:
                    self.keep_file(file)
                except VmcoreError:
                    continue

    def keep_file(self, file: int) -> None:
        """One struct file with its path and inode. Raises VmcoreError."""
        kernel = self._kernel
        kernel.struct(file, "file")
        self._keep_inode(kernel.pointer(file, "file.f_inode"))
        self._keep_path(file + kernel.offset("file.f_path"))

    def _keep_path(self, path: int) -> None:
        kernel = self._kernel
        self._keep_dentries(kernel.pointer(path, "path.dentry"))
        # struct vfsmount is the part of struct mount that file systems may see (fs/mount.h).
        self._keep_mounts(kernel.pointer(path, "path.mnt") - kernel.offset("mount.mnt"))

    def _keep_dentries(self, dentry: int) -> None:
        kernel = self._kernel
        for _ in range(_MAX_DEPTH):
            if not self._new(dentry):
                return
            kernel.struct(dentry, "dentry")
            kernel.text(kernel.pointer(dentry, "dentry.d_name.name"))
            self._keep_inode(kernel.pointer(dentry, "dentry.d_inode"))
            self._keep_super(kernel.pointer(dentry, "dentry.d_sb"))
            dentry = kernel.pointer(dentry, "dentry.d_parent")

    def _keep_inode(self, inode: int) -> None:
        if self._new(inode):
            self._kernel.struct(inode, "inode")

    def _keep_mounts(self, mount: int) -> None:
        kernel = self._kernel
        for _ in range(_MAX_DEPTH):
            if not self._new(mount):
                return
            kernel.struct(mount, "mount")
            kernel.text(kernel.pointer(mount, "mount.mnt_devname"))
            outside = mount + kernel.offset("mount.mnt")
            self._keep_super(kernel.pointer(outside, "vfsmount.mnt_sb"))
            self._keep_dentries(kernel.pointer(outside, "vfsmount.mnt_root"))
            self._keep_dentries(kernel.pointer(mount, "mount.mnt_mountpoint"))
            mount = kernel.pointer(mount, "mount.mnt_parent")

    def _keep_super(self, super_block: int) -> None:
        kernel = self._kernel
        if not self._new(super_block):
            return
        kernel.struct(super_block, "super_block")
        kind = kernel.pointer(super_block, "super_block.s_type")
        if self._new(kind):
            kernel.struct(kind, "file_system_type")
            kernel.text(kernel.pointer(kind, "file_system_type.name"))
