# SPDX-License-Identifier: GPL-2.0-or-later
"""Which system call loads the capture kernel; apart from all other settings, of which the loader knows nothing."""

from __future__ import annotations

import enum


class KexecSyscall(enum.StrEnum):
    """Which system call loads the capture kernel (kdump.conf(5): kexec_syscall)."""

    AUTO = "auto"
    KEXEC_FILE_LOAD = "kexec_file_load"
    KEXEC_LOAD = "kexec_load"
