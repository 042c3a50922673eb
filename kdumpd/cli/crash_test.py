# SPDX-License-Identifier: GPL-2.0-or-later
"""kdumpctl test: crashes this machine, to see whether a dump comes. RHEL's verb, and RHEL's question before it.

The service does it, for root and for whoever polkit lets. Where none answers root can do it all the same.
"""

from __future__ import annotations

import os
import sys
import time
from argparse import Namespace
from pathlib import Path

from kdumpd.cli import output, status
from kdumpd.errors import DeniedError, KdumpError, NotArmedError, UsageError, os_reason
from kdumpd.host.machine import read_machine
from kdumpd.loader.crash import crash as crash_now
from kdumpd.service.missed import leave_tag, take_tag_back
from kdumpd.service.places import Places

_CRASH_SECONDS = 60.0  # the service waits for disks to take what is to be written, but not for ever


def crash(options: Namespace) -> int:
    """Does not return when it works. Raises KdumpError when the machine is not armed, or must not be crashed."""
    if options.root != Path("/"):
        raise UsageError("--root is for looking: a machine below a folder cannot be crashed")
    report = status.read(Path("/"))
    if not report.service and os.geteuid() != 0:
        raise DeniedError("Without the service only root may crash this machine", hint="use sudo")
    if not report.fields["armed"]:
        raise NotArmedError("This machine is not armed: no dump would come", hint="see: kdumpctl status")
    if not options.force and not _confirmed():
        raise KdumpError("Nothing was done", hint="to crash without a question: kdumpctl test --force")
    if report.service:
        _ask_the_service(options.json)
    else:
        _do_it_alone()
    raise KdumpError("This machine did not crash", hint="journalctl -u kdumpd -u kdumpd-test-crash -n 20")


def _ask_the_service(style: str) -> None:
    from kdumpd.cli import bus

    test = bus.test_crash(interactive=sys.stdin.isatty())
    if style != "off":
        output.print_json({"test": test}, style)
    else:
        print(f"Crashing now; after the next boot the service says what became of test {test}.")
    sys.stdout.flush()
    time.sleep(_CRASH_SECONDS)


def _do_it_alone() -> None:
    places = Places()
    try:
        leave_tag(places.state_dir, read_machine().boot_id)
    except OSError as error:
        raise KdumpError(f"The test cannot be noted: {error.filename}: {os_reason(error)}") from error
    try:
        crash_now()
    finally:
        take_tag_back(places.state_dir)


def _confirmed() -> bool:
    """The host's name, typed by somebody at a terminal."""
    name = os.uname().nodename
    if not sys.stdin.isatty():
        return False
    print(f"This crashes {name}: everything that runs on it is lost, and it starts again.")
    return input(f"To do so, type its name ({name}): ").strip() == name
