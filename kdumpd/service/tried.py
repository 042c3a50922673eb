# SPDX-License-Identifier: GPL-2.0-or-later
"""What came of the last trial of the targets on the network: /run/kdumpd/targets.json. Written by `trial.py`."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from pathlib import Path
from typing import Any

from kdumpd.service.json_file import read_json

REPORT_NAME = "targets.json"
WORKS, FAILED = "works", "failed"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TriedTarget:
    """`target` as kdump.conf names it; `sentence` and `hint` of the error of one that failed. `free_bytes` is what a
    capture could write there, None where the server does not tell. `time_usec` is of CLOCK_REALTIME.
    """

    target: str
    result: str
    time_usec: int
    sentence: str = ""
    hint: str = ""
    free_bytes: int | None = None


def read_tried(run_dir: Path, targets: Collection[str]) -> tuple[TriedTarget, ...]:
    """Those of `targets` that were tried in this boot, in the order of the report."""
    listed = (read_json(run_dir / REPORT_NAME) or {}).get("targets")
    found = map(_parse, listed if isinstance(listed, list) else ())
    return tuple(one for one in found if one is not None and one.target in targets)


def _parse(raw: Any) -> TriedTarget | None:
    if not isinstance(raw, dict):
        return None
    target, result, sentence, hint = (raw.get(name) for name in ("target", "result", "sentence", "hint"))
    when, free = raw.get("time_usec"), raw.get("free_bytes")
    if not isinstance(target, str) or not isinstance(sentence, str) or not isinstance(hint, str):
        return None
    if result not in (WORKS, FAILED) or type(when) is not int or (free is not None and type(free) is not int):
        return None
    return TriedTarget(target=target, result=result, sentence=sentence, hint=hint, time_usec=when, free_bytes=free)
