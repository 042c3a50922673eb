# SPDX-License-Identifier: GPL-2.0-or-later
"""kdumpctl test: crashes this machine, to see whether a dump comes. RHEL's verb, and RHEL's question before it."""

from __future__ import annotations

import os
import sys
from argparse import Namespace
from pathlib import Path

from kdumpd.cli import status
from kdumpd.errors import DeniedError, KdumpError, UsageError, os_reason
from kdumpd.host.machine import read_machine
from kdumpd.service.missed import leave_tag
from kdumpd.service.places import Places


def crash(options: Namespace) -> int:
    """Does not return when it works. Raises KdumpError when the machine is not armed, or must not be crashed."""
    if options.root != Path("/"):
        raise UsageError("--root is for looking: a machine below a folder cannot be crashed")
    if os.geteuid() != 0:
        raise DeniedError("Only root may crash this machine", hint="use sudo")
    report = status.read(Path("/"))
    if not report.fields["armed"]:
        raise KdumpError("This machine is not armed: no dump would come", hint="see: kdumpctl status")
    if not options.force and not _confirmed():
        raise KdumpError("Nothing was done", hint="to crash without a question: kdumpctl test --force")
    machine = read_machine()
    try:
        leave_tag(Places().state_dir, machine.boot_id)
        os.sync()
        Path("/proc/sys/kernel/sysrq").write_text("1\n")
        Path("/proc/sysrq-trigger").write_text("c\n")
    except OSError as error:
        raise KdumpError(f"This machine cannot be crashed: {error.filename}: {os_reason(error)}") from error
    raise KdumpError("The kernel survived sysrq-c", hint="journalctl -k -n 20")


def _confirmed() -> bool:
    """The host's name, typed by somebody at a terminal."""
    name = os.uname().nodename
    if not sys.stdin.isatty():
        return False
    print(f"This crashes {name}: everything that runs on it is lost, and it starts again.")
    return input(f"To do so, type its name ({name}): ").strip() == name
