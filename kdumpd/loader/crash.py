# SPDX-License-Identifier: GPL-2.0-or-later
"""`python3 -m kdumpd.loader.crash`: crashes this machine on purpose, so that everybody sees whether a dump comes.

The service has no right to; it leaves a tag and starts this (kdumpd-test-crash.service). Without a tag that is fresh
and of this boot nothing happens: starting the unit alone crashes no machine. The id of the tag goes into the kernel
log, so that the dump of this very crash is known when it has arrived.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

from kdumpd.errors import KdumpError, os_reason
from kdumpd.host.kexec import read_loaded
from kdumpd.host.machine import now_usec, read_machine

TAG_NAME = "tag.json"
TAG_SECONDS = 60.0  # a tag older than this was not left for this crash
_ANSWER_SECONDS = 1.0  # until who asked has his answer
_SYNC_SECONDS = 20.0  # a server that does not answer must not keep the machine alive for ever
_SURVIVED_SECONDS = 5.0


def log_line(tag_id: str) -> str:
    """What the kernel log says before a test crash; it names the tag."""
    return f"kdumpd: crashing this machine on request, test {tag_id}"


def crash(root: Path = Path("/"), *, state_dir: Path | None = None) -> None:
    """Does not return where it works. Raises KdumpError when there is no tag, no capture kernel, or no crash."""
    tag_id = _check(root, state_dir or root / "var/lib/kdumpd")
    with contextlib.suppress(OSError):  # then the dump is recognised by its time alone
        (root / "dev/kmsg").write_text(log_line(tag_id) + "\n")
    flush = threading.Thread(target=os.sync, daemon=True)
    flush.start()
    flush.join(_SYNC_SECONDS)
    # As late as can be: the service may be putting another image in its place.
    if not read_loaded(root):
        raise KdumpError("No capture kernel is loaded: no dump would come", hint="kdumpctl status")
    trigger = root / "proc/sysrq-trigger"
    try:
        # Root may write there whatever kernel.sysrq is (drivers/tty/sysrq.c, write_sysrq_trigger).
        trigger.write_text("c\n")
    except OSError as error:
        raise KdumpError(f"This machine cannot be crashed: {trigger}: {os_reason(error)}") from error
    time.sleep(_SURVIVED_SECONDS)
    raise KdumpError("The kernel survived sysrq-c", hint="journalctl -k -n 20")


def _check(root: Path, state_dir: Path) -> str:
    """The id of the tag. Raises KdumpError unless it was left in this boot, a moment ago."""
    try:
        tag: Any = json.loads((state_dir / TAG_NAME).read_text(encoding="utf-8"))
        left, boot_id, tag_id = int(tag["time_usec"]), str(tag["boot_id"]), str(tag["id"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise KdumpError("Nobody asked for a crash of this machine", hint="kdumpctl test") from error
    if boot_id != read_machine(root).boot_id or not 0 <= now_usec() - left <= TAG_SECONDS * 1e6:
        raise KdumpError("The crash that was asked for is over, or of another boot", hint="kdumpctl test")
    return tag_id


def main(arguments: list[str] | None = None) -> int:
    """Ends only where the machine is still alive, with 1."""
    import argparse  # the service takes names from this module, and needs no parser

    parser = argparse.ArgumentParser(prog="python3 -m kdumpd.loader.crash", description=__doc__)
    parser.add_argument("--root", type=Path, default=Path("/"), metavar="FOLDER", help="the machine lies below it")
    parser.add_argument("--state-dir", type=Path, metavar="FOLDER", help="where the tag is")
    options = parser.parse_args(arguments)
    time.sleep(_ANSWER_SECONDS)
    try:
        crash(options.root, state_dir=options.state_dir)
    except KdumpError as error:
        print(f"<3>{error.sentence}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
