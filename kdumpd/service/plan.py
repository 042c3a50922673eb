# SPDX-License-Identifier: GPL-2.0-or-later
"""`make_plan(facts) -> Plan`: what to do about the facts. Pure and printable; `actions.py` carries it out.

A machine that is armed badly is better than one that is not armed: a stale image is loaded when no better one can
be built, and a reservation that looks too small is used all the same. The state says so; the plan does not refuse.
"""

from __future__ import annotations

import dataclasses

from kdumpd.service.model import Facts


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Build an image? Load it? And why, in half a sentence each."""

    build: bool = False
    load: bool = False
    why: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return self.build or self.load

    def __str__(self) -> str:
        return "; ".join(self.why) or "nothing to do"


def make_plan(facts: Facts, *, asked: bool = False, rebuild: bool = False) -> Plan:
    """What the service does by itself, or, with `asked`, what a person's `Load` makes it do.

    `rebuild` builds and loads even when everything is fresh. Only a person replaces a capture kernel that somebody
    else loaded, or ends a hold.
    """
    unsupported = facts.crash_loaded is None or not facts.syscall_known or facts.around.fadump
    if unsupported or facts.reserved_bytes == 0:
        return Plan()
    build_why = _why_build(facts, rebuild=rebuild)
    load_why = _why_load(facts, asked=asked, building=build_why is not None)
    why = tuple(part for part in (build_why, load_why) if part is not None)
    return Plan(build=build_why is not None, load=load_why is not None, why=why)


def _why_build(facts: Facts, *, rebuild: bool) -> str | None:
    if facts.config_errors or facts.kernel is None or facts.target_trouble is not None:
        return None
    if rebuild:
        return "build the image anew"
    if not facts.image.present:
        return "build the image: there is none"
    if facts.image.damaged is not None:
        return f"build the image: {facts.image.damaged}"
    if facts.image.stale is not None and not facts.no_rebuild:
        return f"build the image: {facts.image.stale}"
    return None


def _why_load(facts: Facts, *, asked: bool, building: bool) -> str | None:
    if facts.kernel is None or not facts.security.may_load:
        return None
    if not building and not facts.image.usable:
        return None
    if asked:
        return "load the image as asked"
    ours = facts.loaded is not None or facts.load_interrupted
    if facts.held or (facts.crash_loaded and not ours):
        return None
    if not facts.crash_loaded:
        return "load the image: the kernel holds none"
    if facts.load_interrupted or facts.loaded is None:
        return "load the image again: the last load was interrupted"
    if not building and facts.failure is not None and facts.failure.refused == facts.wanted:
        return None  # each attempt would take the pair that is loaded away for a moment, and end in the same way
    if building or facts.newer_pair:
        return "load the newer image"
    if facts.changed_hardware:
        return f"load the image again: the machine has other {' and '.join(facts.changed_hardware)} now"
    if facts.settings_changed:
        return "load again: the command line or the way to load changed"
    return None
