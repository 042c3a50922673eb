# SPDX-License-Identifier: GPL-2.0-or-later
"""One look at the machine without the service: the same facts, the same judgement, nothing changed."""

from __future__ import annotations

import os
from pathlib import Path

from kdumpd.config.parse import read_config
from kdumpd.crashes.index import Crash
from kdumpd.crashes.place import read_all_crashes
from kdumpd.errors import DeniedError, KdumpError
from kdumpd.service.facts import gather
from kdumpd.service.images import ImageReader
from kdumpd.service.model import Facts
from kdumpd.service.places import Places
from kdumpd.service.status import Status, make_status


def look(root: Path = Path("/")) -> Status:
    """The status of the machine below `root`. Raises DeniedError when the caller may not see what it rests on."""
    return make_status(look_facts(root))


def look_facts(
    root: Path = Path("/"),
    *,
    question: str = "Whether this machine is armed",
    hint: str = "start the service, or use sudo",
) -> Facts:
    """The facts behind `look`. Raises DeniedError with the `question` that stays open, and what helps."""
    places = Places.below(root)
    for folder in (places.run_dir, places.state_dir):
        if folder.is_dir() and not os.access(folder, os.R_OK | os.X_OK):
            raise DeniedError(
                f"{question} cannot be told: {folder} may not be read",
                hint=hint,
            )
    config = read_config(root)
    crashes: tuple[Crash, ...]
    try:
        crashes = read_all_crashes(config, root)
    except KdumpError:
        crashes = ()  # not mounted or not readable: what is not seen proves nothing
    return gather(places, config, ImageReader(places), crashes)
