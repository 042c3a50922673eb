# SPDX-License-Identifier: GPL-2.0-or-later
"""Notes what the next start of the service is to load at once: what is loaded now, once nothing is left to do."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from kdumpd.config.kexec_syscall import KexecSyscall
from kdumpd.service.early import Ready, deciding_facts, note_ready
from kdumpd.service.model import Facts
from kdumpd.service.places import Places

_OF_ONE_BOOT = frozenset({"boot_id", "loaded_usec", "memory"})


class Readiness:
    """Told before and after each look. What may have changed while the engine looked is not noted."""

    def __init__(self, places: Places) -> None:
        self._places = places
        self._sources: tuple[Path, Path] | None = None
        self._before: list[str] = []
        self._noted: Ready | None = None

    def before(self) -> None:
        """The engine begins to look."""
        if self._sources is not None:
            self._before = deciding_facts(self._places.root, *map(str, self._sources))

    def after(self, facts: Facts, *, reports: bool) -> None:
        """It saw `facts`; `reports` is on_unload report. While nothing is settled the note stays as it is."""
        sources = None if facts.kernel is None else (facts.kernel, facts.image.path)
        if sources is None or sources != self._sources:
            self._sources = sources
            self._before = []
        if not self._before or not _is_settled(facts) or facts.loaded is None:
            return
        record = {name: value for name, value in dataclasses.asdict(facts.loaded).items() if name not in _OF_ONE_BOOT}
        ready = Ready(record, str(facts.kernel), str(facts.image.path), reports, self._before)
        if ready != self._noted:
            note_ready(self._places.state_dir, ready)
            self._noted = ready


def _is_settled(facts: Facts) -> bool:
    """Whether the kernel holds, by kexec_file_load(2), what a load would load now."""
    image, loaded = facts.image, facts.loaded
    if loaded is None or not facts.crash_loaded or facts.load_interrupted or facts.held or facts.config_errors:
        return False
    if facts.newer_pair or facts.settings_changed or facts.changed_hardware or facts.crypt_keys:
        return False
    fresh = image.usable and image.stale is None and image.sha256 == loaded.initrd_sha256
    same_kernel = loaded.kernel_sha256 == image.kernel_sha256 != ""
    return fresh and same_kernel and facts.kexec_syscall is not KexecSyscall.KEXEC_LOAD
