# SPDX-License-Identifier: GPL-2.0-or-later
"""`python3 -m kdumpd.crashes.on_crash NAME`: runs the programs in /etc/kdumpd/on-crash.d for one crash, and removes
those that are too old.

Started once for each crash that is found, as kdumpd-on-crash@NAME.service: outside of the service's sandbox, and with a
bound on the time. Each program gets its facts as environment variables (kdumpd(8)); one that fails keeps no other
from running.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from kdumpd.config.parse import read_config
from kdumpd.crashes.index import Crash
from kdumpd.crashes.place import read_all_crashes
from kdumpd.crashes.retention import expired, remove
from kdumpd.crashes.text import printable
from kdumpd.errors import KdumpError, NotFoundError
from kdumpd.host.files import below

FOLDER = "/etc/kdumpd/on-crash.d"
SECONDS = 60.0
# No leftovers of editors and package managers.
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_LEFTOVER = re.compile(r".*(~|\.bak|\.swp|\.dpkg-.*|\.rpm(save|new|orig)|\.ucf-.*)")


def main(arguments: list[str] | None = None) -> int:
    """0 when all programs ended well, or there is none."""
    import argparse  # the service takes a function from this module, and needs no parser

    parser = argparse.ArgumentParser(prog="kdumpd.crashes.on_crash")
    parser.add_argument("--root", type=Path, default=Path("/"))
    parser.add_argument("--seconds", type=float, default=SECONDS, help="the time that each program has")
    parser.add_argument("name", help="the crash")
    options = parser.parse_args(arguments)
    try:
        crash = _find(options.name, options.root)
        failed = [path for path in programs(options.root) if not run(path, crash, options.seconds)]
        clean(options.root)
    except KdumpError as error:
        print(f"<3>{printable(str(error))}", file=sys.stderr)
        return error.exit_code
    return 1 if failed else 0


def programs(root: Path = Path("/")) -> tuple[Path, ...]:
    """What is to be run, by name. A program that others than root could have written is refused, and said."""
    found = []
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        for path in sorted(below(root, FOLDER).iterdir()):
            if not _NAME.fullmatch(path.name) or _LEFTOVER.fullmatch(path.name):
                continue
            status = path.stat()
            if not stat.S_ISREG(status.st_mode) or not status.st_mode & 0o111:
                continue
            if status.st_uid != 0 or status.st_mode & 0o022:
                print(f"<3>{path} is not run: others than root may write it", file=sys.stderr)
                continue
            found.append(path)
    return tuple(found)


def environment(crash: Crash) -> Mapping[str, str]:
    """What a program learns; texts out of crashed memory are one line of printable characters."""
    manifest = crash.manifest
    facts = {
        "CRASH": crash.name,
        "PATH": str(crash.path),
        "RESULT": crash.standing.value,
        "PROBLEM": crash.problem or "",
        "VMCORE": "" if crash.dump is None else str(crash.dump),
        "LOG": "" if crash.log is None else str(crash.log),
        "TIME_USEC": str(crash.time_usec),
        "KERNEL": "" if manifest is None else manifest.kernel,
        "PANIC": "" if manifest is None or manifest.panic is None else manifest.panic,
    }
    fixed = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"}
    return {**fixed, **{f"KDUMPD_{name}": printable(value) for name, value in facts.items()}}


def run(path: Path, crash: Crash, seconds: float = SECONDS) -> bool:
    """Runs one program to its end or to the end of its time; True when it ended well."""
    try:
        child = subprocess.Popen(
            [str(path)], stdin=subprocess.DEVNULL, env=dict(environment(crash)), cwd="/", start_new_session=True
        )
    except OSError as error:
        print(f"<3>{path} cannot be run: {error}", file=sys.stderr)
        return False
    try:
        status = child.wait(seconds)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        print(f"<3>{path} was ended: it ran for more than {seconds:.0f} s", file=sys.stderr)
        return False
    if status != 0:
        print(f"<3>{path} failed with status {status}", file=sys.stderr)
    return status == 0


def clean(root: Path = Path("/")) -> None:
    """Removes what keep_crashes and keep_days let go, and says it. Raises TargetError."""
    config = read_config(root)
    # With a line that cannot be followed nobody knows what its owner wants kept.
    if config.errors:
        return
    for crash, why in expired(read_all_crashes(config, root), config, time.time_ns() // 1000):
        remove(crash)
        print(f"<5>the dump in {crash.path} was removed ({why})", file=sys.stderr)


def _find(name: str, root: Path) -> Crash:
    """The crash with exactly this name. Raises NotFoundError, TargetError."""
    crash = next((each for each in read_all_crashes(read_config(root), root) if each.name == name), None)
    if crash is None:
        raise NotFoundError(f"There is no crash {name!r}", hint="see: kdumpctl list")
    return crash


if __name__ == "__main__":
    sys.exit(main())
