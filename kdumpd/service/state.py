# SPDX-License-Identifier: GPL-2.0-or-later
"""`decide(facts) -> State`: the only place that judges. Pure: no reading, no clock, no memory.

Each rung of the ladder has one function that says why the machine is not above it. docs/STATE.md has the table.
"""

from __future__ import annotations

from collections.abc import Iterator

from kdumpd.service.estimate import mib, recommended_bytes
from kdumpd.service.model import Code, Facts, Held, Reason, Rung, State
from kdumpd.service.warnings import warnings

_RETRY = "look at: journalctl -u kdumpd; then: kdumpctl load"


def decide(facts: Facts) -> State:
    """The state these facts amount to."""
    state = _judge(facts)
    return State(rung=state.rung, reasons=(*state.reasons, *_notes(facts)))


def _judge(facts: Facts) -> State:
    for rung, reasons in (
        (Rung.UNSUPPORTED, _unsupported(facts)),
        (Rung.NOT_RESERVED, _not_reserved(facts)),
        (Rung.RESERVED_TOO_SMALL, _too_small(facts)),
    ):
        found = tuple(reasons)
        if found:
            return State(rung=rung, reasons=(*found, *_beside(facts)))
    if facts.crash_loaded and (facts.loaded is not None or facts.load_interrupted):
        return _loaded(facts)
    return _not_loaded(facts)


def _unsupported(facts: Facts) -> Iterator[Reason]:
    if facts.crash_loaded is None:
        yield Reason(
            code=Code.KEXEC_MISSING,
            sentence="This kernel cannot load a capture kernel: /sys/kernel has no kexec_crash_loaded",
            cure="run a kernel built with CONFIG_KEXEC_FILE and CONFIG_CRASH_DUMP",
        )
    elif not facts.syscall_known:
        yield Reason(
            code=Code.ARCH_UNSUPPORTED,
            sentence=f"kdumpd does not know how to load a capture kernel on {facts.machine.arch}",
        )
    elif facts.around.fadump:
        yield Reason(
            code=Code.FADUMP_ACTIVE,
            sentence="A crash goes to firmware-assisted dump (fadump=on), which kdumpd does not serve",
            cure="boot without fadump=on",
        )


def _not_reserved(facts: Facts) -> Iterator[Reason]:
    if facts.reserved_bytes > 0:
        return
    if not facts.crashkernel:
        yield Reason(
            code=Code.CRASHKERNEL_MISSING,
            sentence="No memory is reserved for a capture kernel: the kernel was booted without crashkernel=",
            cure="kdumpctl reset-crashkernel, and boot again",
        )
    else:
        why = facts.expectation.problem or "the kernel found no free memory of that size"
        yield Reason(
            code=Code.CRASHKERNEL_IGNORED,
            sentence=f"No memory is reserved although the command line has crashkernel={facts.crashkernel}: {why}",
            cure="kdumpctl reset-crashkernel, and boot again; the kernel's words: journalctl -k --grep=crashkernel",
        )


def _too_small(facts: Facts) -> Iterator[Reason]:
    if facts.reserved_bytes >= facts.required_bytes:
        return
    need = mib(facts.required_bytes, up=True)
    yield Reason(
        code=Code.RESERVATION_TOO_SMALL,
        sentence=f"{mib(facts.reserved_bytes)} are reserved for the capture kernel, a capture needs about {need}",
        cure=f"kdumpctl reservation set {recommended_bytes(facts.required_bytes) >> 20}M, and boot again",
    )


def _loaded(facts: Facts) -> State:
    record = facts.loaded
    reasons = tuple(_why_stale(facts))
    if reasons or record is None:
        return State(rung=Rung.LOADED_STALE, reasons=reasons + tuple(_beside(facts)))
    if record.image_id in facts.proven_images:
        return State(rung=Rung.PROVEN, reasons=tuple(_beside(facts)))
    rehearsal = facts.around.last_rehearsal
    if rehearsal is not None and rehearsal.is_of(record) and not rehearsal.problem:
        unproven = Reason(
            code=Code.NOT_PROVEN,
            sentence="This very image delivered a dump in a scratch machine, but has captured no crash of this one yet",
            cure="when the machine may go down: kdumpctl test",
        )
        return State(rung=Rung.REHEARSED, reasons=(*_beside(facts), unproven))
    unproven = Reason(
        code=Code.NOT_PROVEN,
        sentence="The capture kernel is loaded, but no crash has been captured with this very image yet",
        cure="in a scratch machine: kdumpctl rehearse; or, when this one may go down: kdumpctl test",
    )
    return State(rung=Rung.LOADED, reasons=(*_beside(facts), unproven))


def _why_stale(facts: Facts) -> Iterator[Reason]:
    """Why what is loaded is not what should be loaded."""
    record = facts.loaded
    if record is None:
        yield Reason(
            code=Code.LOAD_INTERRUPTED,
            sentence="The service was interrupted while loading: which image the kernel holds is not known",
            cure="kdumpctl load",
        )
        return
    yield from _config_errors(facts, "the capture kernel loaded before stays")
    yield from _image_reasons(facts)
    fresh = facts.image.usable and facts.image.stale is None and not facts.config_errors
    if fresh and facts.newer_pair:
        yield Reason(
            code=Code.OLD_IMAGE_LOADED,
            sentence="A newer capture image was built, or a newer kernel installed, than the one that is loaded",
            cure="kdumpctl load",
        )
    elif facts.settings_changed:
        yield Reason(
            code=Code.OLD_SETTINGS_LOADED,
            sentence="The capture kernel was loaded with another command line, or in another way, than it would be now",
            cure="kdumpctl load",
        )
    if facts.changed_hardware:
        yield Reason(
            code=Code.HARDWARE_CHANGED,
            sentence=f"The machine has other {' and '.join(facts.changed_hardware)} than when the capture kernel was"
            " loaded: what was plugged in since would be missing in the dump",
            cure="kdumpctl load",
        )


def _not_loaded(facts: Facts) -> State:
    reasons = [*_beside(facts), *_config_errors(facts, "no new image is built with it"), *_image_reasons(facts)]
    if not facts.image.usable:
        rung = Rung.IMAGE_MISSING
    elif facts.image.stale is not None:
        rung = Rung.IMAGE_STALE
    else:
        rung = Rung.UNLOADED
    if not reasons:
        sentence = "The capture image is ready, but not loaded"
        reasons.append(Reason(code=Code.NOT_LOADED, sentence=sentence, cure="kdumpctl load"))
    return State(rung=rung, reasons=tuple(reasons))


def _image_reasons(facts: Facts) -> Iterator[Reason]:
    image = facts.image
    if not image.present:
        yield Reason(
            code=Code.IMAGE_MISSING,
            sentence=f"There is no capture image for kernel {facts.machine.release} yet",
            cure="kdumpctl rebuild",
        )
    elif image.damaged is not None:
        yield Reason(
            code=Code.IMAGE_DAMAGED,
            sentence=f"The capture image {image.path} cannot be used: {image.damaged}",
            cure="kdumpctl rebuild",
        )
    elif image.stale is not None:
        yield Reason(
            code=Code.IMAGE_STALE,
            sentence=f"The capture image {image.path} is out of date: {image.stale}",
            cure="kdumpctl rebuild",
        )


def _config_errors(facts: Facts, consequence: str) -> Iterator[Reason]:
    for problem in facts.config_errors:
        yield Reason(
            code=Code.CONFIG_ERROR,
            sentence=f"{problem}; {consequence}",
            cure="mend that line, then: kdumpctl reload",
        )


def _beside(facts: Facts) -> Iterator[Reason]:
    """What is worth knowing on any rung, or keeps the machine from climbing."""
    ours = facts.loaded is not None or facts.load_interrupted
    if facts.crash_loaded and not ours:
        yield Reason(
            code=Code.LOADED_BY_OTHER,
            sentence="A capture kernel is loaded that kdumpd did not load: nothing is known about it",
            cure="to put kdumpd's own in its place: kdumpctl load",
        )
    if facts.held is Held.OTHER and not facts.crash_loaded:
        yield Reason(
            code=Code.UNLOADED_BY_OTHER,
            sentence="Somebody unloaded the capture kernel past kdumpd, and kdump.conf says: on_unload report",
            cure="kdumpctl load",
        )
    elif facts.held and not facts.crash_loaded:
        yield Reason(
            code=Code.HELD,
            sentence="The capture kernel was unloaded on request and is not loaded again by itself",
            cure="kdumpctl load",
        )
    if facts.security.load_disabled and not (facts.crash_loaded and ours):
        yield Reason(
            code=Code.LOADING_DISABLED,
            sentence="The kernel loads no capture kernel until the next boot: kernel.kexec_load_disabled is 1",
            cure="remove kernel.kexec_load_disabled from /etc/sysctl.d and boot again",
        )
    elif facts.security.load_limit == 0 and not (facts.crash_loaded and ours):
        yield Reason(
            code=Code.LOAD_LIMIT_REACHED,
            sentence="The kernel loads no capture kernel until the next boot: kernel.kexec_load_limit_panic is used up",
            cure="boot again, without kernel.kexec_load_limit_panic in /etc/sysctl.d",
        )
    if facts.failure is not None:
        yield Reason(code=facts.failure.code, sentence=facts.failure.sentence, cure=facts.failure.cure or _RETRY)
    if facts.kernel_trouble is not None:
        yield Reason(code=Code.KERNEL_NOT_FOUND, sentence=facts.kernel_trouble.sentence, cure=facts.kernel_trouble.hint)
    if facts.target_trouble is not None:
        code = facts.target_trouble.code or Code.TARGET_UNUSABLE
        yield Reason(code=code, sentence=facts.target_trouble.sentence, cure=facts.target_trouble.hint)
    for trouble in facts.around.unreachable:
        yield Reason(code=Code.TARGET_UNREACHABLE, sentence=trouble.sentence, cure=trouble.hint)


def _notes(facts: Facts) -> Iterator[Reason]:
    """What lowers no rung, and so comes last."""
    yield from warnings(facts)
    if facts.missed:
        yield Reason(
            code=Code.CRASH_WITHOUT_DUMP,
            sentence=f"This machine crashed before it was booted, and no dump of that is here: {facts.missed}",
            cure="when the machine may go down, watch its console: kdumpctl test",
        )
    for problem in facts.problems:
        if not problem.fatal:
            yield Reason(code=Code.CONFIG_WARNING, sentence=str(problem), cure="mend that line, then: kdumpctl reload")
