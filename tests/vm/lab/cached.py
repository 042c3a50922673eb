# SPDX-License-Identifier: GPL-2.0-or-later
"""What takes long to make is made once: folders in the cache, with a digest of what they are made of in their names."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

_DIGITS = 12


def digest(recipe: str) -> str:
    """Another text, another folder."""
    return hashlib.sha256(recipe.encode()).hexdigest()[:_DIGITS]


def made_once(
    parent: Path, name: str, key: str, make: Callable[[Path], object], *, part: str = ".", kept: int = 1
) -> Path:
    """The folder `parent`/`name`-`key`. When it is not there, `make` fills a new one, whose `part` is kept.

    Whoever else wants one of that name waits meanwhile. Of those with any key the `kept` that were used last stay. What
    is left of a folder that could not be made are its logs, which explain why. Raises what `make` raises.
    """
    parent.mkdir(parents=True, exist_ok=True)
    folder = parent / f"{name}-{key}"
    with (parent / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            scratch = Path(tempfile.mkdtemp(prefix=f"new-{name}-", dir=parent))
            scratch.chmod(0o755)
            try:
                make(scratch)
                (scratch / part).rename(folder) if part != "." else scratch.rename(folder)
            finally:
                _leave_logs(scratch)
        os.utime(folder)
        known = [path for path in parent.iterdir() if re.fullmatch(re.escape(name) + "-[0-9a-f]{12,16}", path.name)]
        for old in sorted(known, key=lambda path: path.stat().st_mtime)[:-kept]:
            shutil.rmtree(old)
    return folder


def _leave_logs(scratch: Path) -> None:
    """Removes what is left of a scratch folder, but for its own logs."""
    for path in list(scratch.iterdir()) if scratch.exists() else ():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        elif path.suffix != ".log":
            path.unlink()
    if scratch.exists() and not any(scratch.iterdir()):
        scratch.rmdir()
