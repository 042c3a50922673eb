# SPDX-License-Identifier: GPL-2.0-or-later
"""crash and makedumpfile of a newer Debian, run on this one without installing anything.

Debian 12's makedumpfile knows no zstd, and its crash loses the processes of current kernels. The newer
programs are unpacked with all their libraries and started through their own libc's loader (ld.so(8)).
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
import subprocess
import tempfile
from pathlib import Path

from .aptroot import CACHE, KEEPS_OLD_LISTS, AptRoot, LabError, run

# makedumpfile leaves no free page of a 6.12 kernel out before 1.7.7, which trixie does not have yet.
SUITES = {"crash": "trixie", "makedumpfile": "forky"}
_LIBRARIES = "usr/lib/x86_64-linux-gnu"


def program(name: str) -> list[str]:
    """The words that start `name` ("crash" or "makedumpfile") of a newer Debian; append its arguments."""
    root = _unpacked(name, SUITES[name])
    libraries = root / _LIBRARIES
    return [str(libraries / "ld-linux-x86-64.so.2"), "--library-path", str(libraries), str(root / "usr/bin" / name)]


def crash(vmlinux: Path, dump: Path, commands: list[str], *, timeout: float = 180) -> str:
    """What crash(8) prints for `commands` on a dump. Raises AssertionError when it cannot open the dump."""
    with tempfile.NamedTemporaryFile("w", prefix="crash-commands-") as script:
        script.write("\n".join([*commands, "quit"]) + "\n")
        script.flush()
        argv = [*program("crash"), "-s", "-i", script.name, str(vmlinux), str(dump)]
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=timeout,
        )
    assert done.returncode == 0, f"crash does not open {dump}: exit {done.returncode}\n{done.stdout[-3000:]}"
    return done.stdout


def _unpacked(name: str, suite: str) -> Path:
    apt = AptRoot(suite)
    version = json.dumps(apt.versions([name]))
    key = hashlib.sha256(version.encode()).hexdigest()[:12]
    parent = CACHE / "tools"
    parent.mkdir(parents=True, exist_ok=True)
    folder = parent / f"{name}-{suite}-{key}"
    with (parent / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            scratch = Path(tempfile.mkdtemp(prefix="new-", dir=parent))
            try:
                run(
                    [
                        "mmdebstrap", "--quiet", "--mode=root", "--variant=extract", f"--aptopt={KEEPS_OLD_LISTS}",
                        f"--include={name}", suite, str(scratch / "root"), apt.sources[0],
                    ],
                    timeout=600,
                )  # fmt: skip
                (scratch / "root").rename(folder)
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
    if not (folder / "usr/bin" / name).exists():
        raise LabError(f"{folder}: {name} was not unpacked")
    return folder
