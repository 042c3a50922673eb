# SPDX-License-Identifier: GPL-2.0-or-later
"""What the service shows to the world at one moment: the judgement and the figures it rests on."""

from __future__ import annotations

import dataclasses

from kdumpd.service.model import Facts, LastCapture, LastRehearsal, LastTest, Reason, State
from kdumpd.service.state import decide

_NESTED = frozenset({"state", "triggers", "last_capture", "last_test", "last_rehearsal"})


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """Sizes in bytes, times in microseconds of CLOCK_REALTIME, 0 and "" where there is nothing to say.

    `panic_timeout` is kernel.panic in seconds. `hotplug` names what the kernel itself keeps right in a loaded image.
    """

    state: State
    release: str
    reserved_bytes: int
    required_bytes: int
    loaded: bool
    loaded_since_usec: int
    image_path: str
    image_id: str
    activity: str
    last_error: str
    crashkernel: str
    next_crashkernels: tuple[str, ...]
    triggers: tuple[tuple[str, bool], ...]
    panic_timeout: int
    lockdown: str
    secure_boot: bool
    hotplug: tuple[str, ...]
    last_capture: LastCapture | None
    last_test: LastTest | None
    last_rehearsal: LastRehearsal | None

    def to_dict(self) -> dict[str, object]:
        """Flat and plain, for --json."""
        fields: dict[str, object] = {
            field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name not in _NESTED
        }
        return {
            "state": self.state.rung.value,
            "armed": self.state.rung.armed,
            **fields,
            "triggers": dict(self.triggers),
            "last_capture": {} if self.last_capture is None else self.last_capture.known(),
            "last_test": {} if self.last_test is None else self.last_test.known(),
            "last_rehearsal": {} if self.last_rehearsal is None else self.last_rehearsal.known(),
            "reasons": [_reason(reason) for reason in self.state.reasons],
        }


def _reason(reason: Reason) -> dict[str, str]:
    return {"code": reason.code.value, "sentence": reason.sentence, "cure": reason.cure}


def make_status(facts: Facts, *, activity: str = "") -> Status:
    """`decide` and the figures of `facts`."""
    around = facts.around
    return Status(
        state=decide(facts),
        release=facts.machine.release,
        reserved_bytes=facts.reserved_bytes,
        required_bytes=facts.required_bytes,
        loaded=bool(facts.crash_loaded),
        loaded_since_usec=facts.loaded.loaded_usec if facts.crash_loaded and facts.loaded is not None else 0,
        image_path=str(facts.image.path),
        image_id=facts.image.image_id or "",
        activity=activity,
        last_error=facts.failure.sentence if facts.failure is not None else "",
        crashkernel=facts.crashkernel,
        next_crashkernels=around.next_boot.crashkernels,
        triggers=around.triggers.panics,
        panic_timeout=around.triggers.reboot_seconds or 0,
        lockdown=facts.security.lockdown or "",
        secure_boot=bool(facts.security.secure_boot),
        hotplug=tuple(
            name
            for name, handled in (("cpu", around.topology.cpus_handled), ("memory", around.topology.memory_handled))
            if handled
        ),
        last_capture=around.last_capture,
        last_test=around.last_test,
        last_rehearsal=around.last_rehearsal,
    )
