# SPDX-License-Identifier: GPL-2.0-or-later
"""What an earlier build made and this one can use again: the base of its image, if a build now would make the same; or
the stock of the base, which is Python with all that belongs to it, from the image of any kernel.

Three things have to hold: the same was asked for (`base_key`, `stock_key`), no file of the host that went into it
changed (`freshness`), and its bytes are the ones that were checked then.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from kdumpd.config.capture import CaptureConfig
from kdumpd.errors import BuildError
from kdumpd.host.kernels import Kernel
from kdumpd.image import cpio, parts, verify
from kdumpd.image.contents import Tree
from kdumpd.image.cpio import Entry
from kdumpd.image.freshness import base_reasons, stock_reasons
from kdumpd.image.record import MANIFEST_PATH, ImageRecord, read_record

# Settings that are told to the collector and change nothing else; and what of a local target is only told: its drivers
# are in the list of modules. What is not named here makes another base: a build too many is better than an image that
# lacks what a setting asks for.
_SETTINGS_ONLY = frozenset({"hostname", "dump", "final_action", "failure_action", "deadlines"})
_OF_LOCAL_TARGETS = frozenset({"device", "directory"})


def base_key(*, capture: CaptureConfig, **inputs: object) -> str:
    """The name of a base by what it is made for: sha256 over `inputs` (strings and tuples) and over `capture`."""
    told = {name: value for name, value in json.loads(capture.to_json()).items() if name not in _SETTINGS_ONLY}
    told["destinations"] = [
        {name: value for name, value in target.items() if target["kind"] != "local" or name not in _OF_LOCAL_TARGETS}
        for target in told["destinations"]
    ]
    return hashlib.sha256(json.dumps({**inputs, "capture": told}, sort_keys=True).encode()).hexdigest()


def stock_key(**inputs: object) -> str:
    """The name of a stock by what decides what is in it (what JSON has), beside files of the host."""
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Before:
    """An image that was built earlier and whose base is still right; `settings` are the entries of its overlay."""

    record: ImageRecord
    base: parts.Base
    settings: dict[str, Entry]

    def has_settings(self, tree: Tree) -> bool:
        """Whether the settings in `tree` are the ones it holds."""
        return tree.entries == {path: entry for path, entry in self.settings.items() if path != MANIFEST_PATH}


def find(folder: Path, key: str, kernel: Kernel) -> Before | None:
    """The image in `folder`, if a build for `key` could use its base; None otherwise."""
    try:
        record = read_record(folder)
        if record.base_key != key or base_reasons(record, kernel):
            return None
        packed = verify.read_packed(folder, record)
        overlay = next((part for part in record.parts if part.name == parts.OVERLAY), None)
        if overlay is None:
            return None
        settings = {entry.path: entry for entry in cpio.read(parts.unpack(packed, overlay))}
    except BuildError:
        return None  # there is none, or it is damaged: all is built anew
    return Before(record=record, base=parts.base_of(packed, record, settings), settings=settings)


def find_stock(folder: Path, key: str) -> parts.Base | None:
    """The stock for `key` out of the image in `folder` or in a folder beside it, None without one."""
    for place in (folder, *_beside(folder)):
        try:
            record = read_record(place)
            if record.stock_key != key:
                continue
            stock = parts.stock_of(verify.read_packed(place, record), record)
        except BuildError:
            continue  # there is none, or it is damaged
        if not stock_reasons(record, stock.files):
            return stock
    return None


def _beside(folder: Path) -> Iterator[Path]:
    """The folders beside `folder` that nobody else can have put anything into: what they hold runs as root."""
    try:
        places = sorted(folder.parent.iterdir())
    except OSError:
        return
    for place in places:
        try:
            status = place.lstat()
        except OSError:
            continue
        own = status.st_uid == os.geteuid() and stat.S_IMODE(status.st_mode) & 0o077 == 0
        if stat.S_ISDIR(status.st_mode) and own and place != folder:
            yield place
