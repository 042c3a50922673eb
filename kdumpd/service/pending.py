# SPDX-License-Identifier: GPL-2.0-or-later
"""Notes about kernels that came or went: one file for each release in /var/lib/kdumpd/pending.

The hooks of package managers leave them, also in a chroot or an image under construction, where no service runs; the
service takes them up when it is told, and at its start. A note outlives a build that fails. Knows nothing of images.
"""

from __future__ import annotations

import contextlib
import enum
from pathlib import Path

from kdumpd.errors import DeniedError, KdumpError, os_reason
from kdumpd.host.kernels import is_release
from kdumpd.service.json_file import write_atomic

FOLDER = "pending"


class Event(enum.StrEnum):
    """What happened to a kernel."""

    ADD = "add"
    REMOVE = "remove"


def leave(state_dir: Path, release: str, event: Event) -> None:
    """Notes `event`; an older note about the same kernel is replaced. Raises KdumpError."""
    if not is_release(release):
        raise KdumpError(f"{release!r} is not the name of a kernel release", hint="`uname -r` shows one")
    folder = state_dir / FOLDER
    try:
        for part in (state_dir, folder):
            with contextlib.suppress(FileExistsError):
                part.mkdir(mode=0o700, parents=part is state_dir)
        write_atomic(folder / release, f"{event}\n")
    except PermissionError as error:
        raise DeniedError(f"{folder} may not be written", hint="use sudo") from error
    except OSError as error:
        raise KdumpError(f"The note about kernel {release} cannot be left in {folder}: {os_reason(error)}") from error


def read(state_dir: Path) -> dict[str, Event]:
    """The notes by release. A note that says nothing known counts as ADD: whether the kernel is there is looked up."""
    found = {}
    with contextlib.suppress(OSError):
        for path in sorted((state_dir / FOLDER).iterdir()):
            if is_release(path.name):
                with contextlib.suppress(OSError):
                    text = path.read_text(encoding="utf-8", errors="replace")[:16].strip()
                    found[path.name] = Event.REMOVE if text == Event.REMOVE else Event.ADD
    return found


def done(state_dir: Path, release: str, event: Event | None) -> None:
    """Takes the note about `release` away, if it still says `event`: what came meanwhile is acted upon as well."""
    if event is not None and read(state_dir).get(release) is event:
        with contextlib.suppress(OSError):
            (state_dir / FOLDER / release).unlink()
