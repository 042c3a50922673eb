# SPDX-License-Identifier: GPL-2.0-or-later
"""Reasons that lower no rung: a crash now would be captured, but something may go wrong, or will at the next boot.

Pure, like `state.py`, which puts them behind the reasons that count.
"""

from __future__ import annotations

from collections.abc import Iterator

from kdumpd.service.estimate import mib
from kdumpd.service.model import Code, Facts, Reason

_SET = "kdumpctl reservation set 256M"


def warnings(facts: Facts) -> Iterator[Reason]:
    """One reason for each thing that bodes ill."""
    yield from _next_boot(facts)
    yield from _target(facts)
    rehearsal = facts.around.last_rehearsal
    if rehearsal is not None and rehearsal.problem and facts.loaded is not None and rehearsal.is_of(facts.loaded):
        yield Reason(
            code=Code.REHEARSAL_FAILED,
            sentence=f"In a scratch machine no good dump came of what is loaded: {rehearsal.problem}",
            cure="look into /var/lib/kdumpd/rehearsal.log; then: kdumpctl rehearse",
        )
    if facts.around.cma_missing:
        yield Reason(
            code=Code.CMA_IGNORED,
            sentence=f"The command line has crashkernel={facts.crashkernel}, but the kernel set no ,cma area aside",
            cure="journalctl -k --grep=crashkernel",
        )
    if facts.around.image_appraised:
        yield Reason(
            code=Code.IMAGE_APPRAISED,
            sentence="The IMA policy wants the initrd of a kexec signed, and kdumpd does not sign its image",
            cure="take func=KEXEC_INITRAMFS_CHECK out of the IMA policy, or sign the image with evmctl ima_sign",
        )
    if facts.around.triggers.panics_on("oops") is False:
        yield Reason(
            code=Code.OOPS_NOT_CAPTURED,
            sentence="Only a panic is captured: after an oops the kernel goes on (kernel.panic_on_oops is 0)",
            cure="echo kernel.panic_on_oops=1 > /etc/sysctl.d/90-kdumpd.conf && sysctl --system",
        )


def _next_boot(facts: Facts) -> Iterator[Reason]:
    """What the boot loader's files say, where it is not what the running kernel was started with."""
    found = facts.around.next_boot
    places = found.files[0] if len(found.files) == 1 else f"{found.files[0]} and others" if found.files else ""
    if "" in found.crashkernels and facts.crashkernel:
        some = "an entry" if len(found.crashkernels) > 1 else "no entry"
        words = f"has {some} without crashkernel=" if some == "an entry" else "has no crashkernel="
        yield Reason(
            code=Code.NEXT_BOOT_UNRESERVED,
            sentence=f"The next boot may reserve no memory for a capture kernel: {places} {words}",
            cure=_SET,
        )
    elif found.crashkernels and facts.crashkernel not in found.crashkernels:
        now = f"crashkernel={facts.crashkernel}" if facts.crashkernel else "no crashkernel="
        yield Reason(
            code=Code.NEXT_BOOT_DIFFERS,
            sentence=f"This boot has {now}, the next one has crashkernel={' or '.join(found.crashkernels)} ({places})",
            cure="boot again to have it",
        )


def _target(facts: Facts) -> Iterator[Reason]:
    for trouble in facts.around.target_troubles:
        yield Reason(
            code=Code.TARGET_DEGRADED,
            sentence=f"One of the targets in kdump.conf cannot be used, the others can: {trouble.sentence}",
            cure=trouble.hint,
        )
    if facts.around.raw_waiting:
        yield Reason(
            code=Code.RAW_WAITING,
            sentence=f"Dumps wait on a raw device to be copied: {', '.join(facts.around.raw_waiting)}",
            cure="journalctl -u kdumpd-recover; then: systemctl start kdumpd-recover",
        )
    free, need = facts.around.free_bytes, facts.around.dump_bytes
    if free is not None and free < need:
        yield Reason(
            code=Code.TARGET_SPACE_LOW,
            sentence=f"{mib(free)} are free where dumps go; one taken now would hold {mib(need, up=True)} of memory"
            " before it is compressed",
            cure="remove old dumps (kdumpctl list), or name a larger target in kdump.conf",
        )
