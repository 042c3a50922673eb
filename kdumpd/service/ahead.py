# SPDX-License-Identifier: GPL-2.0-or-later
"""Images for kernels that do not run yet: built when a kernel is installed, so that its first boot finds one; removed
with the kernel.

Works in a thread of its own, so that the running kernel's image and load never wait for it, and never touches what
belongs to the running kernel. A kernel is new when a hook left a note (`pending.py`), or when it appears while the
service watches. Images that exist already are kept fresh.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Set as AbstractSet
from pathlib import Path

from kdumpd.config.parse import read_config
from kdumpd.errors import CancelledError, KdumpError
from kdumpd.host.kernels import Kernel, installed_kernels, is_release, traces_of_kernel
from kdumpd.host.machine import read_machine
from kdumpd.host.mounts import resolve_targets
from kdumpd.image.record import INITRD_NAME, RECORD_NAME
from kdumpd.service import pending
from kdumpd.service.actions import Builder
from kdumpd.service.images import ImageReader
from kdumpd.service.journal import Event, Journal
from kdumpd.service.places import Places

# Kinds of changes (Engine.changed) after which there may be something to do.
KINDS = frozenset({"hook", "kernel", "config", "files"})
_FIRST_RETRY_SECONDS = 60.0
_LAST_RETRY_SECONDS = 3600.0


class Ahead:
    """`quiet_seconds` is how long nothing may have changed before it begins: packages install piece by piece."""

    def __init__(self, places: Places, builder: Builder, journal: Journal, *, quiet_seconds: float = 5.0) -> None:
        self._places = places
        self._builder = builder
        self._journal = journal
        self._quiet_seconds = quiet_seconds
        self._running = read_machine(places.root).release
        self._known = {kernel.release for kernel in installed_kernels(places.root)}
        self._condition = threading.Condition()
        self._due: float | None = time.monotonic() + quiet_seconds
        self._failures = 0
        self._ending = False
        self._thread = threading.Thread(target=self._run, name="ahead", daemon=True)

    def start(self) -> None:
        """Begins with what happened while no service ran."""
        self._thread.start()

    def stop(self) -> None:
        """Ends a build under way and begins no other."""
        with self._condition:
            self._ending = True
            self._condition.notify()
        self._builder.stop()

    def changed(self, kinds: AbstractSet[str]) -> None:
        """Something of these kinds changed. Any thread may call it; returns at once."""
        if kinds.isdisjoint(KINDS):
            return
        with self._condition:
            self._failures = 0
            self._due = time.monotonic() + self._quiet_seconds
            self._condition.notify()

    def sweep(self) -> bool:
        """Does all there is to do; False when something failed that is worth another try."""
        root, state_dir = self._places.root, self._places.state_dir
        notes = pending.read(state_dir)
        kernels = {kernel.release: kernel for kernel in installed_kernels(root)}
        # Same-release upgrades of the running kernel are the engine's business.
        if notes.get(self._running) is pending.Event.ADD:
            pending.done(state_dir, self._running, pending.Event.ADD)
        for release in sorted(_with_image(state_dir) | set(notes)):
            gone = notes.get(release) is pending.Event.REMOVE or not traces_of_kernel(release, root)
            if gone and release != self._running:
                self._remove(release, notes.get(release))
        appeared = set(kernels) - self._known
        wanted = appeared | _with_image(state_dir)
        wanted |= {release for release, event in notes.items() if event is pending.Event.ADD}
        outcomes = [self._refresh(kernels[release]) for release in sorted(wanted & set(kernels) - {self._running})]
        well = all(outcomes)
        if well:
            self._known = set(kernels)
        # A note about a kernel that is only half there yet waits for the rest.
        return well and not {release for release in pending.read(state_dir) if release != self._running}

    def _refresh(self, kernel: Kernel) -> bool:
        """Builds the image unless it is fresh. False when the build failed."""
        try:
            config = read_config(self._places.root)
            targets = resolve_targets(config, self._places.root)
        except KdumpError:
            return True  # the state names it; with the cure comes another change
        image = ImageReader(self._places).read(kernel.release, config, kernel, targets)
        if (image.usable and image.stale is None) or config.errors:
            pending.done(self._places.state_dir, kernel.release, pending.Event.ADD)
            return True
        start = time.monotonic()
        try:
            line = self._builder.build(kernel.release)
        except CancelledError:
            return True
        except KdumpError as error:
            if self._failures == 0:
                words = f"No capture image for kernel {kernel.release}, which does not run yet: {error.sentence}"
                self._journal.tell(Event.BUILD_FAILED, words, kernel=kernel.release, hint=error.hint)
            return False
        usec = int((time.monotonic() - start) * 1e6)
        words = f"Built the capture image of kernel {kernel.release} ahead of its first boot: {line}"
        self._journal.tell(Event.BUILT, words, kernel=kernel.release, duration_usec=usec)
        pending.done(self._places.state_dir, kernel.release, pending.Event.ADD)
        return True

    def _remove(self, release: str, note: pending.Event | None) -> None:
        """Takes away our files for a kernel that is gone, and their folder if it is empty then."""
        folder = self._places.state_dir / release
        if (folder / INITRD_NAME).exists():
            words = f"Removed the capture image of kernel {release}, which is not installed any more"
            self._journal.tell(Event.IMAGE_REMOVED, words, kernel=release)
        with contextlib.suppress(OSError):
            for name in (INITRD_NAME, RECORD_NAME):
                (folder / name).unlink(missing_ok=True)
            folder.rmdir()
        pending.done(self._places.state_dir, release, note)

    def _run(self) -> None:
        while self._wait():
            try:
                well = self.sweep()
            except OSError as error:
                self._journal.tell(Event.FAULT, f"Kernels that do not run yet cannot be looked after: {error}")
                well = False
            with self._condition:
                if well:
                    self._failures = 0
                elif self._due is None:
                    delay = min(_FIRST_RETRY_SECONDS * 2**self._failures, _LAST_RETRY_SECONDS)
                    self._failures = min(self._failures + 1, 16)
                    self._due = time.monotonic() + delay

    def _wait(self) -> bool:
        """Until something is due; False when the service ends. Sleeps without a timeout while nothing is."""
        with self._condition:
            while not self._ending:
                left = None if self._due is None else self._due - time.monotonic()
                if left is not None and left <= 0:
                    self._due = None
                    return True
                self._condition.wait(left)
            return False


def _with_image(state_dir: Path) -> set[str]:
    """The releases that an image of ours was built for."""
    with contextlib.suppress(OSError):
        return {path.parent.name for path in state_dir.glob(f"*/{RECORD_NAME}") if is_release(path.parent.name)}
    return set()
