# SPDX-License-Identifier: GPL-2.0-or-later
"""Gathers the `Facts` of one moment. Reads everything, judges nothing; what cannot be read becomes a fact too."""

from __future__ import annotations

from pathlib import Path

from kdumpd.config.model import Config
from kdumpd.config.targets import SshTarget
from kdumpd.crashes.index import Crash, Standing
from kdumpd.errors import KdumpError, TargetLockedError
from kdumpd.host.cmdline import Wishes, capture_cmdline, capture_cpus, read_boot_apicid, read_cmdline
from kdumpd.host.crashkernel import parse_crashkernel, reserved_expectation
from kdumpd.host.crypt_keys import keys_of
from kdumpd.host.fadump import read_fadump
from kdumpd.host.kernel_image import read_header
from kdumpd.host.kernels import Kernel, find_kernel
from kdumpd.host.kexec import has_syscall, read_loaded
from kdumpd.host.machine import Machine, read_machine, read_present_cpus
from kdumpd.host.mounts import ResolvedTarget, read_mounts, resolve_all
from kdumpd.host.nextboot import crashkernel_words, read_next_boot
from kdumpd.host.reservation import has_cma, read_memory_bytes, read_reservation
from kdumpd.host.security import read_image_appraised, read_security
from kdumpd.host.space import free_bytes, read_dump_bytes
from kdumpd.host.sysctl import read_triggers
from kdumpd.host.topology import read_topology
from kdumpd.service.estimate import estimate
from kdumpd.service.images import ImageReader
from kdumpd.service.missed import read_test
from kdumpd.service.model import Code, Facts, Failure, LastCapture, LoadedRecord, Surroundings, Trouble
from kdumpd.service.places import Places
from kdumpd.service.records import HoldFile, LoadedFile
from kdumpd.service.rehearsed import read_rehearsal
from kdumpd.service.tried import FAILED, TriedTarget, read_tried


def gather(
    places: Places,
    config: Config,
    images: ImageReader,
    crashes: tuple[Crash, ...],
    *,
    failure: Failure | None = None,
    missed: str = "",
) -> Facts:
    """The facts below `places.root`. Never raises for what a machine may look like."""
    root = places.root
    machine = read_machine(root)
    running = read_cmdline(root)
    request = parse_crashkernel(running)
    reservation = read_reservation(root)
    kernel, kernel_trouble = _find_kernel(machine, root)
    targets, target_trouble, degraded = _find_targets(config, root)
    image = images.read(machine.release, config, kernel, targets)
    loaded, interrupted = _read_loaded(places, machine)
    reached = _reached(places, config)
    degraded, unreachable = _unreachable(reached, targets, degraded)
    memory_bytes = read_memory_bytes(root)
    captured = last_capture(crashes)
    need = estimate(
        memory_bytes=memory_bytes,
        kernel_bytes=_kernel_bytes(kernel, machine),
        packed_bytes=image.packed_bytes,
        unpacked_bytes=image.unpacked_bytes,
        modules_bytes=image.modules_bytes,
        measured_bytes=None if captured is None else captured.peak_rss_bytes,
        cpus=min(config.nr_cpus or 1, read_present_cpus(root)),
        ssh=any(isinstance(target, SshTarget) for target in config.targets),
    )
    return Facts(
        machine=machine,
        crash_loaded=read_loaded(root),
        syscall_known=has_syscall(machine.arch),
        crashkernel=crashkernel_words(running),
        expectation=reserved_expectation(request, memory_bytes),
        reserved_bytes=reservation.size_bytes,
        need=need,
        security=read_security(root),
        problems=config.problems,
        no_rebuild=config.force_no_rebuild,
        kernel=None if kernel is None else kernel.image,
        kernel_trouble=kernel_trouble,
        target_trouble=None if config.errors else target_trouble,
        image=image,
        loaded=loaded,
        load_interrupted=interrupted,
        proven_images=proven_images(crashes),
        held=HoldFile(places.run_dir, machine.boot_id).read(),
        failure=failure,
        around=Surroundings(
            next_boot=read_next_boot(root, running),
            triggers=read_triggers(root),
            topology=read_topology(root),
            ranges=reservation.ranges,
            fadump=read_fadump(root),
            cma_missing=request.cma is not None and has_cma(root) is False,
            image_appraised=read_image_appraised(root),
            free_bytes=_free_bytes(config, targets, reached, root),
            target_troubles=degraded,
            unreachable=unreachable,
            dump_bytes=read_dump_bytes(config.dump.levels[0], root),
            last_capture=captured,
            last_test=read_test(places.state_dir),
            last_rehearsal=read_rehearsal(places.state_dir),
        ),
        missed=missed,
        cmdline=wanted_cmdline(config, machine, reservation.size_bytes - need.total_bytes, root),
        kexec_syscall=config.kexec_syscall,
        crypt_keys=" ".join(
            keys_of(layer for target in targets if target.stack is not None for layer in target.stack.layers)
        ),
    )


def wanted_cmdline(config: Config, machine: Machine, spare_bytes: int, root: Path) -> str:
    """What the capture kernel is to be told now; `spare_bytes` of the reservation are over after what it needs."""
    cpus = config.nr_cpus or capture_cpus(machine.arch, read_present_cpus(root), spare_bytes)
    wishes = Wishes(base=config.commandline, remove=config.commandline_remove, append=config.commandline_append)
    running = read_cmdline(root)
    return capture_cmdline(running, machine.arch, boot_apicid=read_boot_apicid(root), cpus=cpus, wishes=wishes)


def proven_images(crashes: tuple[Crash, ...]) -> frozenset[str]:
    """The ids of images that delivered a complete dump."""
    return frozenset(
        crash.manifest.image_id
        for crash in crashes
        if crash.standing is Standing.COMPLETE and crash.manifest is not None and crash.manifest.image_id
    )


def last_capture(crashes: tuple[Crash, ...]) -> LastCapture | None:
    """The newest of `crashes`, which come oldest first."""
    if not crashes:
        return None
    crash = crashes[-1]
    manifest = crash.manifest
    return LastCapture(
        result=crash.standing.value,
        time_usec=crash.time_usec,
        dump_bytes=crash.dump_bytes,
        peak_rss_bytes=None if manifest is None else _size(manifest.peak_rss_bytes),
        lowest_available_bytes=None if manifest is None else _size(manifest.lowest_available_bytes),
    )


def _size(value: object) -> int | None:
    """A size out of a manifest, which is a file and may say anything."""
    return value if isinstance(value, int) and 0 <= value < 1 << 63 else None


def _reached(places: Places, config: Config) -> tuple[TriedTarget, ...]:
    """What came of the last trial of the targets on the network that kdump.conf names now."""
    return () if config.errors else read_tried(places.run_dir, {str(target) for target in config.targets})


def _unreachable(
    reached: tuple[TriedTarget, ...], targets: tuple[ResolvedTarget, ...], degraded: tuple[Trouble, ...]
) -> tuple[tuple[Trouble, ...], tuple[Trouble, ...]]:
    """Targets that cannot be used while others can, with those that were not reached; or none is left, and why."""
    missing = tuple(
        Trouble(
            sentence=f"The target {one.target} could not be reached when it was last tried: {one.sentence}",
            hint=f"{one.hint}; then: kdumpctl test-target" if one.hint else "kdumpctl test-target",
        )
        for one in reached
        if one.result == FAILED
    )
    if len(missing) < len(targets):
        return (*degraded, *missing), ()
    return degraded, missing


def _free_bytes(
    config: Config, targets: tuple[ResolvedTarget, ...], reached: tuple[TriedTarget, ...], root: Path
) -> int | None:
    """Of the first target, which is the one that is wanted."""
    first = next((one for one in reached if config.targets and one.target == str(config.targets[0])), None)
    if first is not None:
        return first.free_bytes
    if not targets or targets[0].block is None:
        return None
    try:
        return free_bytes(read_mounts(root), targets[0].block, root)
    except KdumpError:
        return None  # what is not seen proves nothing


def _find_kernel(machine: Machine, root: Path) -> tuple[Kernel | None, Trouble | None]:
    try:
        return find_kernel(machine.release, root), None
    except KdumpError as error:
        return None, trouble(error)


def _find_targets(config: Config, root: Path) -> tuple[tuple[ResolvedTarget, ...], Trouble | None, tuple[Trouble, ...]]:
    """The targets that can be used; why there are none, or why some cannot be."""
    try:
        found = resolve_all(config, root)
    except KdumpError as error:
        return (), trouble(error), ()
    return found.targets, None, tuple(map(trouble, found.troubles))


def _kernel_bytes(kernel: Kernel | None, machine: Machine) -> int | None:
    if kernel is None:
        return None
    try:
        header = read_header(kernel.image, machine.arch)
    except KdumpError:
        return None  # the load refuses such a file with a sentence of its own
    return None if header is None else header.init_size_bytes


def _read_loaded(places: Places, machine: Machine) -> tuple[LoadedRecord | None, bool]:
    file = LoadedFile(places.run_dir, machine.boot_id)
    if not read_loaded(places.root):
        return None, False
    interrupted = file.interrupted()
    return None if interrupted else file.read(), interrupted


def trouble(error: KdumpError) -> Trouble:
    """An error as a fact, its sentence beginning like one."""
    code = Code.TARGET_LOCKED if isinstance(error, TargetLockedError) else None
    return Trouble(sentence=error.sentence[:1].upper() + error.sentence[1:], hint=error.hint or "", code=code)
